"""Running one workload: rounds, in turns, over all contenders."""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time

from contenders import Peer
from workloads import FLOOD_PEERS, STORM_BURST, STORM_ECHO, STORM_HANDSHAKES
from machine import (Failed, Syscalls, busy_seconds, cpu_clock, family, profile, pss, read_line,
                     set_cubic, slab, why_no_cubic)

CERTIFICATES = {
    "ecdsa": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "rsa2048": ["-newkey", "rsa:2048"],
    "rsa4096": ["-newkey", "rsa:4096"],
}
SYSCALL_SECONDS = 0.3
PROFILE_SECONDS = 1.0
UPDATES_A_SECOND = 400_000  # KeyUpdates made for a flood, more than any server gets through
PATIENCE = 90
KEPT = ("cpu_us", "rate", "p50_us", "p99_us", "load_cpu_us", "server_busy", "pss_bytes",
        "pss_kept_bytes", "kernel_bytes", "beside_rate", "late_share")


def say(*words, end="\n"):
    print(*words, file=sys.stderr, flush=True, end=end)


class Server:
    """A contender that serves, until stop()."""

    def __init__(self, bench, contender, workload):
        self.bench, self.name = bench, contender.name
        self.log = open(os.path.join(bench.children.directory, f"{contender.name}.log"), "w+")
        if isinstance(contender, Peer):
            command, port = contender.start(bench, workload)
            self.address = f"127.0.0.1:{port}"
        else:
            command, self.address = contender.command(bench, workload), None
        self.child = bench.children.start(command, bench.server_cpu, contender.environment,
                                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                          stderr=self.log)
        try:
            if self.address:
                self.wait_for_port(port)
            else:
                line = read_line(self.child, 10, f"server '{self.name}'")
                if not line.startswith("listening on "):
                    raise Failed(f"server '{self.name}' said '{line}', not 'listening on ...'")
                self.address = line.split()[-1]
        except Failed as failure:
            self.stop()
            raise Failed(f"{failure}{self.last_words()}") from None
        self.use_cubic()

    def use_cubic(self):
        reasons = [set_cubic(pid) for pid in self.pids()]
        if all(reasons):
            self.bench.note(f"{self.name} runs without cubic congestion control: {reasons[0]}")

    def wait_for_port(self, port):
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up and self.child.poll() is None:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    time.sleep(0.2)  # hitch forks its workers after it listens
                    return
            time.sleep(0.05)
        raise Failed(f"server '{self.name}' does not listen on port {port}")

    def pids(self):
        return family(self.child.pid)

    def last_words(self):
        with open(self.log.name) as log:
            lines = log.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def stop(self):
        self.bench.children.stop(self.child)
        self.log.close()


class Bench:
    def __init__(self, arguments, children, contenders):
        self.arguments, self.children = arguments, children
        self.contenders = contenders
        self.notes, self.left_out, self.failures = [], [], 0
        self.load_average = os.getloadavg()[0]
        self.load = os.path.join(arguments.build, "bench", "bench-load")
        self.syscalls = Syscalls()
        self.backend = None
        self.storms = {}
        um_tls = os.path.join(arguments.build, "tools", "um-tls", "um-tls")
        self.limits_off = self.find_limits(um_tls)
        self.certificates = {}
        if not os.access(self.load, os.X_OK):
            sys.exit(f"bench: {self.load} is not built: './run build' first")
        if not shutil.which("openssl"):
            sys.exit("bench: the openssl program is needed to make certificates: install openssl")
        if not self.syscalls.tool:
            self.leave_out("system calls per operation: needs perf or strace", failure=False)
        if arguments.profile and not shutil.which("perf"):
            self.leave_out("profiles: perf is not installed")
            arguments.profile = False
        no_cubic = why_no_cubic()
        self.cubic = [] if no_cubic else ["--cubic"]
        if no_cubic:
            self.note(f"the load runs without cubic congestion control: {no_cubic}")
        self.choose_cpus()

    # ---- what contenders need ----

    def choose_cpus(self):
        cpus = sorted(os.sched_getaffinity(0))
        wanted = self.arguments.cpus or [cpus[0], cpus[min(1, len(cpus) - 1)]]
        for cpu in set(wanted) - set(cpus):
            self.leave_out(f"CPU {cpu}: this process may use {', '.join(map(str, cpus))} only")
        allowed = [cpu for cpu in wanted if cpu in cpus]
        spare = [cpu for cpu in cpus if cpu not in allowed]
        self.server_cpu, self.load_cpu = (allowed + spare + cpus[:1] * 2)[:2]
        if self.server_cpu == self.load_cpu:
            self.note("one CPU only: server and load share it, figures are not comparable "
                      "with others")

    @staticmethod
    def find_limits(um_tls):
        """What makes `um-tls serve` like servers that limit nothing, as far as it has it."""
        wanted = (["--core"], ["--min-rate", 1], ["--receive-total", 1 << 31],
                  ["--send-total", 1 << 31])
        try:
            usage = subprocess.run([um_tls, "serve", "--help"], capture_output=True, text=True,
                                   check=False).stdout
        except OSError:
            return []
        return [word for words in wanted if f" {words[0]} " in usage for word in words]

    def certificate(self, kind):
        """Self-signed, made when first asked for, the same for everyone."""
        if kind in self.certificates:
            return self.certificates[kind]
        cert, key = (os.path.join(self.children.directory, f"{kind}.{end}")
                     for end in ("crt", "key"))
        command = ["openssl", "req", "-x509", *CERTIFICATES[kind], "-nodes", "-days", "30", "-subj",
                   "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                   "-keyout", key, "-out", cert]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"bench: openssl req failed: {done.stderr.strip()}")
        self.certificates[kind] = cert, key
        return cert, key

    def backend_port(self):
        """A plaintext server for peers that only terminate TLS, beside the load, so that the
        server's CPU is the peer's alone."""
        if not self.backend:
            program = os.path.join(self.arguments.build, "bench", "plain-epoll")
            self.backend = self.children.start([program, "--body", "64"], self.load_cpu,
                                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            self.backend_address = read_line(self.backend, 10, "the peers' backend").split()[-1]
        return self.backend_address.split(":")[-1]

    def note(self, what):
        if what not in self.notes:
            say(f"note: {what}")
            self.notes.append(what)

    def leave_out(self, what, failure=True):
        say(f"left out: {what}")
        self.left_out.append(what)
        self.failures += failure

    # ---- one run of the load ----

    def load_command(self, server, arguments, contender, timing=True):
        words = [word for word in arguments if not (contender.plain and
                                                    word in ("--resume", "--tls12"))]
        command = [self.load, "--connect", server.address, *self.cubic, *words]
        if contender.plain:
            command.append("--plain")
        if timing:
            command += ["--seconds", self.arguments.seconds, "--warm-up", self.arguments.warm_up]
        return command

    def start_load(self, command, idle=False):
        return self.children.start(command, self.load_cpu, idle=idle, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish_load(self, child, seconds):
        try:
            out, err = child.communicate(timeout=seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed("the load did not end") from None
        finally:
            self.children.stop(child)
        if child.returncode:
            raise Failed((err.strip().splitlines() or ["the load failed"])[-1])
        return {k: float(v) for k, v in (pair.split("=") for pair in out.splitlines()[-1].split())}

    def run_load(self, server, workload, contender):
        pids = ",".join(map(str, server.pids()))
        command = self.load_command(server, workload.load, contender) + ["--server-pid", pids]
        values = self.finish_load(self.start_load(command), self.arguments.seconds)
        values["server_busy"] = values["cpu_us"] * values["rate"] / 1e6
        if "--resume" in workload.load and not contender.plain and values["resumed"] == 0:
            raise Failed("not one connection was resumed")
        return values

    def run_memory(self, contender, workload):
        command = contender.command(self, workload)
        child = self.children.start(command, self.server_cpu, contender.environment,
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE)
        return self.finish_load(child, 1)

    def run_idle(self, server, workload, contender):
        """The slope between two numbers of connections: what the process holds anyway,
        and the parts of libraries it shares with the load, drop out. Then what is still held
        when all but the first few have gone."""
        child = self.start_load(self.load_command(server, workload.load, contender, timing=False))
        points = []
        try:
            for _ in range(3):
                held = int(read_line(child, PATIENCE, "the load").split()[-1])
                time.sleep(0.3)
                points.append((held, pss(server.pids()), slab()))
                child.stdin.write("\n")
                child.stdin.flush()
        except (Failed, BrokenPipeError) as failure:
            err = child.stderr.read().strip() if child.poll() is not None else ""
            raise Failed(err or str(failure)) from None
        finally:
            self.children.stop(child)
        (few, small, slab_few), (many, large, slab_many), (_, after, _) = points
        count = many - few
        return {"pss_bytes": (large - small) / count, "pss_kept_bytes": (after - small) / count,
                "kernel_bytes": (slab_many - slab_few) / count}

    def cost(self, workload, load, contender):
        """Server CPU of an operation in a closed loop, us."""
        server = Server(self, contender, workload)
        try:
            return self.run_load(server, workload._replace(load=load), contender)["cpu_us"]
        finally:
            server.stop()

    def storm_rates(self, workload):
        """Messages and handshakes a second that take their shares of the strongest baseline."""
        if workload.cert in self.storms:
            return self.storms[workload.cert]
        name = "epoll-best" if "epoll-best" in self.contenders else next(iter(self.contenders))
        handshakes = ["--handshakes", "--connections", STORM_BURST]
        rates = [share * 1e6 / self.cost(workload, load, self.contenders[name])
                 for share, load in ((STORM_ECHO, workload.load), (STORM_HANDSHAKES, handshakes))]
        self.note(f"{workload.name}: {rates[0]:.0f} messages and {rates[1]:.0f} handshakes a "
                  f"second, {STORM_ECHO:.0%} and {STORM_HANDSHAKES:.0%} of what {name} can do")
        self.storms[workload.cert] = rates
        return rates

    def start_nuisance(self, server, workload):
        """Connected, and waiting for a line."""
        command = [self.load, "--connect", server.address, *self.cubic, *workload.beside,
                   "--seconds", 600, "--ready"]
        flood = workload.name.startswith("flood")
        if flood:
            seconds = self.arguments.seconds + self.arguments.warm_up + 0.5
            command += ["--key-updates", int(UPDATES_A_SECOND * seconds / FLOOD_PEERS)]
        if workload.name.startswith("storm"):
            command += ["--rate", self.storm_rates(workload)[1]]
        # The good client's own CPU must be there when it needs it.
        return self.start_load(command, idle=not flood)

    def run_beside(self, server, workload, contender):
        command = self.load_command(server, workload.load, contender) + ["--ready"]
        if workload.name.startswith("storm"):
            command += ["--rate", self.storm_rates(workload)[0]]
        nuisance = self.start_nuisance(server, workload)
        probe = None
        try:
            self.await_ready(nuisance, "the load beside")
            probe = self.start_load(command)
            self.await_ready(probe, "the good client")
            self.go(nuisance)
            if not workload.name.startswith("flood"):  # that must not end too early
                time.sleep(0.3)
            self.go(probe)
            values = self.finish_load(probe, self.arguments.seconds)
            if not workload.name.startswith("flood"):  # its bytes are in socket buffers at once
                nuisance.terminate()
                values["beside_rate"] = self.finish_load(nuisance, 5)["rate"]
        finally:
            for child in (probe, nuisance):
                if child:
                    self.children.stop(child)
        if "late" in values:
            values["late_share"] = values["late"] / (values["wanted"] * values["seconds"])
        return values

    @staticmethod
    def await_ready(child, what):
        try:
            read_line(child, PATIENCE, what)
        except Failed as failure:
            said = child.stderr.read().strip() if child.poll() is not None else ""
            raise Failed(said or str(failure)) from None

    @staticmethod
    def go(child):
        child.stdin.write("\n")
        child.stdin.flush()

    # ---- rounds ----

    def measure_round(self, workload, contender, servers):
        if contender.memory:
            return self.run_memory(contender, workload)
        if workload.kind != "load":
            # A fresh server: a heap that has already grown once would hide the growth, and a
            # flood may still be waiting in the old one's sockets.
            server = Server(self, contender, workload)
            try:
                run = self.run_idle if workload.kind == "idle" else self.run_beside
                return run(server, workload, contender)
            except Failed as failure:
                raise Failed(f"{failure}{server.last_words()}") from None
            finally:
                server.stop()
        if contender.name not in servers:
            servers[contender.name] = Server(self, contender, workload)
        server = servers[contender.name]
        try:
            return self.run_load(server, workload, contender)
        except Failed as failure:
            raise Failed(f"{failure}{server.last_words()}") from None

    def look_inside(self, workload, contender, server, seconds, look):
        """look(pids) while the load runs, and the load's own figures. In a run of its own:
        counting and sampling slow down."""
        command = self.load_command(server, workload.load, contender, timing=False)
        command += ["--seconds", seconds + 0.6, "--warm-up", 0.1]
        child = self.start_load(command)
        try:
            time.sleep(0.4)
            found = look(server.pids())
            return found, self.finish_load(child, seconds)
        finally:
            self.children.stop(child)

    def count_syscalls(self, workload, contender, server):
        count, values = self.look_inside(
            workload, contender, server, SYSCALL_SECONDS,
            lambda pids: self.syscalls.count(pids, SYSCALL_SECONDS))
        return {"syscalls": round(count / SYSCALL_SECONDS / values["rate"], 3)}

    def take_profile(self, workload, contender, server):
        shares, _ = self.look_inside(
            workload, contender, server, PROFILE_SECONDS,
            lambda pids: profile(pids, PROFILE_SECONDS, self.children.directory))
        return {"profile": shares}

    def passes(self):
        if self.syscalls.tool and not self.arguments.quick:
            yield "system calls", self.count_syscalls
        if self.arguments.profile:
            yield "profile", self.take_profile

    def run_passes(self, workload, servers):
        """{contender: {what the passes found}}"""
        found = {name: {} for name in servers}
        for what, run in self.passes():
            for name, server in servers.items():
                try:
                    found[name].update(run(workload, self.contenders[name], server))
                except (Failed, OSError, subprocess.SubprocessError) as failure:
                    self.leave_out(f"{workload.name}, {what} of {name}: {failure}")
        return found

    def measure(self, workload):
        say(f"{workload.name}: {workload.what}")
        values = {name: [] for name, c in self.contenders.items() if c.applies(workload)}
        servers, found, others = {}, {}, None
        busy, own, start = busy_seconds(self.cpus()), self.own_cpu(servers), time.monotonic()
        try:
            for number in range(self.arguments.rounds):
                for name in list(values):
                    try:
                        values[name].append(self.measure_round(workload, self.contenders[name],
                                                               servers))
                    except (Failed, OSError) as failure:
                        self.leave_out(f"{workload.name}, {name}: {failure}")
                        del values[name]
                say(f"  round {number + 1}/{self.arguments.rounds}:  " +
                    "   ".join(f"{n} {v[-1].get(workload.figure, v[-1].get('cpu_us', 0)):.2f}"
                               for n, v in values.items()))
            busy, own = busy_seconds(self.cpus()) - busy, self.own_cpu(servers) - own
            others = max(0.0, busy - own) / (time.monotonic() - start) / len(self.cpus())
            if workload.kind == "load":
                found = self.run_passes(workload, servers)
        finally:
            for server in servers.values():
                server.stop()
        return summarise(workload, values, others if workload.kind == "load" else None, found)

    def cpus(self):
        return {self.server_cpu, self.load_cpu}

    def own_cpu(self, servers):
        ended = os.times()
        return (ended.user + ended.system + ended.children_user + ended.children_system +
                sum(cpu_clock(pid) for s in servers.values() if s.child.poll() is None
                    for pid in s.pids()))


# ---- what it comes to ----


def compare(figure, subject, others):
    """Median ratio within the rounds, its range, and whether it says anything."""
    ratios = [a[figure] / b[figure] for a, b in zip(subject, others) if b.get(figure)]
    if not ratios:
        return None
    ratio, spread = statistics.median(ratios), max(ratios) - min(ratios)
    return {"ratio": round(ratio, 3), "spread": round(spread, 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
            "unclear": spread > abs(1 - ratio) or len(ratios) < 3}


def medians(workload, rounds, found):
    result = {key: round(statistics.median(r[key] for r in rounds), 4)
              for key in rounds[0] if key in KEPT}
    if workload.bytes and "cpu_us" in result:
        result["cpu_us_per_mb"] = round(result["cpu_us"] / workload.bytes * 1e6, 2)
    result.update(found)
    result["rounds"] = [{k: v for k, v in r.items() if k in KEPT} for r in rounds]
    return result


def floor_of(workload, contenders):
    """Plaintext io_uring and libssl alone: what nobody on both goes below."""
    parts = [contenders.get(name, {}).get("cpu_us") for name in ("plain-uring", "libssl-memory")]
    return round(sum(parts), 4) if all(parts) and workload.figure == "cpu_us" else None


def summarise(workload, values, others, found):
    values = {name: rounds for name, rounds in values.items() if rounds}
    contenders = {name: medians(workload, rounds, found.get(name, {}))
                  for name, rounds in values.items()}
    result = {"name": workload.name, "what": workload.what, "figure": workload.figure,
              "contenders": contenders, "subject": None, "ratio": {}, "spread": {}, "range": {},
              "unclear": [], "floor_us": floor_of(workload, contenders), "floor_ratio": None,
              "others_cpu": None if others is None else round(others, 3)}
    if not values:
        return result
    subject = result["subject"] = next(iter(values))
    for name in list(values)[1:]:
        found = compare(workload.figure, values[subject], values[name])
        if found:
            for key in ("ratio", "spread", "range"):
                result[key][name] = found[key]
            if found["unclear"]:
                result["unclear"].append(name)
    if result["floor_us"] and "cpu_us" in contenders[subject]:
        result["floor_ratio"] = round(contenders[subject]["cpu_us"] / result["floor_us"], 3)
    return result

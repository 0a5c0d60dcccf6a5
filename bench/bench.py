#!/usr/bin/env python3
"""Measures libbio_uring's server beside epoll servers, in turns, on this machine.

Method, in short (docs/performance.md has the reasons): the server is pinned to one
CPU and the load to another; every contender gets the same certificate, cipher,
allocator settings and congestion control; rounds are interleaved (A B C A B C ...),
and a ratio is taken within each round, so that whatever slows the machine for a while
slows all of them. The load reads the server's CPU time (user and system, all threads,
the scheduler's nanoseconds) at the two ends of the measured window.
"""

import argparse
import collections
import ctypes
import datetime
import json
import os
import platform
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

Workload = collections.namedtuple("Workload", "name what figure serve load")


def echo(size, connections, name=None):
    label = f"{size // 1024}K" if size >= 1024 else f"{size}B"
    return Workload(name or f"echo-{label}-{connections}c",
                    f"{size} bytes sent back, {connections} connections", "cpu_us", ["--echo"],
                    ["--size", str(size), "--connections", str(connections)])


def http(size, connections, name):
    return Workload(name, f"GET with keep-alive, body of {size} bytes, {connections} connections",
                    "cpu_us", ["--body", str(size)],
                    ["--http", "--size", str(size), "--connections", str(connections)])


IDLE_FIRST = 200
WORKLOADS = [
    echo(64, 64),
    echo(64, 512),
    echo(1024, 64),
    echo(65536, 16, "bulk-echo-64K-16c"),
    http(65536, 16, "bulk-send-64K-16c"),
    http(64, 64, "http-64B-64c"),
    Workload("hs-full-tls13", "connect, full TLS 1.3 handshake, one echo, close; 16 at a time",
             "cpu_us", ["--echo"], ["--handshakes", "--connections", "16"]),
    Workload("idle-2000", "memory for each of 2,000 connections that have spoken once",
             "pss_bytes", ["--echo"],
             ["--idle", "--first", str(IDLE_FIRST), "--connections", str(IDLE_FIRST + 2000)]),
]
# What `./run bench` without a name measures.
DEFAULT = [w.name for w in WORKLOADS]

NOT_MEASURED = [
    "floors (plaintext io_uring and epoll, libssl without I/O) and a thread per connection",
    "other servers (nginx, haproxy, hitch, stunnel)",
    "system calls per operation",
    "1 and 4096 connections, small writes, pipelining, bulk receive alone",
    "resumed handshakes, TLS 1.2, RSA keys, handshake storms, KeyUpdate floods",
    "kernel memory of a connection (idle-* is the process's PSS only)",
    "real networks: everything goes over loopback",
]

FIGURES = {"cpu_us": "server CPU, us per operation", "pss_bytes": "PSS, bytes per connection"}


class Failed(Exception):
    """A contender could not be measured; the rest of the run goes on."""


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# ---- the machine ----


def set_cubic(pid):
    """Sets cubic on the listening sockets of a child, from outside, so that every server
    gets it whether or not it has an option for it; accepted sockets inherit it.
    The reason why not, or None."""
    sys_pidfd_open, sys_pidfd_getfd = 434, 438
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = libc.syscall(sys_pidfd_open, pid, 0)
    if pidfd < 0:
        return os.strerror(ctypes.get_errno())
    reason = "no listening socket found"
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                continue
            fd = libc.syscall(sys_pidfd_getfd, pidfd, int(number), 0)
            if fd < 0:
                return os.strerror(ctypes.get_errno())
            with socket.socket(fileno=fd) as s:
                if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
                    reason = None
    except OSError as error:
        reason = error.strerror
    finally:
        os.close(pidfd)
    return reason


def cpu_model():
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.lower().startswith(("model name", "cpu model", "hardware")):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def busy_seconds(cpus):
    """Time these CPUs did anything at all, in the kernel's own ticks."""
    total = 0
    with open("/proc/stat") as f:
        for line in f:
            fields = line.split()
            if fields[0][:3] == "cpu" and fields[0][3:].isdigit() and int(fields[0][3:]) in cpus:
                user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
                total += user + nice + system + irq + softirq + steal
    return total / os.sysconf("SC_CLK_TCK")


def cpu_clock(pid):
    """What clock_getcpuclockid(3) gives: all threads of the process, past and present."""
    return time.clock_gettime((~pid << 3) | 2)


# ---- children ----


class Children:
    """Everything this program started, so that it can stop exactly that."""

    def __init__(self, directory):
        self.directory = directory
        self.running = []
        self.environment = {k: v for k, v in os.environ.items()
                            if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}

    def start(self, command, cpu, **streams):
        pr_set_pdeathsig = 1
        libc = ctypes.CDLL(None)

        def prepare():
            # Not even a killed benchmark may leave a server behind.
            libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
            os.sched_setaffinity(0, {cpu})

        child = subprocess.Popen(command, env=self.environment, preexec_fn=prepare, text=True,
                                 **streams)
        self.running.append(child)
        return child

    def stop(self, child):
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                stream.close()
        if child in self.running:
            self.running.remove(child)

    def stop_all(self):
        for child in list(self.running):
            self.stop(child)


def read_line(child, seconds, what):
    ready, _, _ = select.select([child.stdout], [], [], seconds)
    line = child.stdout.readline().strip() if ready else ""
    if not line:
        raise Failed(f"{what} {'ended' if ready else f'said nothing for {seconds} s'}")
    return line


class Server:
    def __init__(self, bench, contender, workload):
        self.bench = bench
        self.log = open(os.path.join(bench.children.directory, f"{contender}.log"), "w+")
        command = bench.contenders[contender](workload)
        self.child = bench.children.start(command, bench.server_cpu, stdin=subprocess.DEVNULL,
                                          stdout=subprocess.PIPE, stderr=self.log)
        self.pid = self.child.pid
        try:
            line = read_line(self.child, 10, f"server '{contender}'")
            if not line.startswith("listening on "):
                raise Failed(f"server '{contender}' said '{line}' instead of 'listening on ...'")
        except Failed as failure:
            raise Failed(f"{failure}{self.last_words()}") from None
        self.address = line.split()[-1]
        reason = set_cubic(self.pid)
        if reason:
            bench.note(f"{contender} runs without cubic congestion control: {reason}")

    def last_words(self):
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def pss(self):
        with open(f"/proc/{self.pid}/smaps_rollup") as f:
            for line in f:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
        raise Failed("no Pss in smaps_rollup")

    def stop(self):
        self.bench.children.stop(self.child)
        self.log.close()


# ---- measuring ----


class Bench:
    def __init__(self, arguments, children):
        self.arguments = arguments
        self.children = children
        self.notes = []
        self.left_out = []
        self.load_average = os.getloadavg()[0]
        self.choose_cpus()
        self.make_certificate()
        self.find_contenders()

    def choose_cpus(self):
        cpus = sorted(os.sched_getaffinity(0))
        self.server_cpu, self.load_cpu = cpus[0], cpus[min(1, len(cpus) - 1)]
        if len(cpus) == 1:
            self.note("one CPU only: server and load share it, figures are not comparable "
                      "with others")

    def make_certificate(self):
        """ECDSA P-256, as most servers have. Its own, so that nothing else needs to exist."""
        self.cert = os.path.join(self.children.directory, "cert.pem")
        self.key = os.path.join(self.children.directory, "key.pem")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                   "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=localhost",
                   "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                   "-keyout", self.key, "-out", self.cert]
        if not shutil.which("openssl"):
            sys.exit("bench: the openssl program is needed to make a certificate: install openssl")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench: openssl req failed: {done.stderr.strip()}")

    def find_contenders(self):
        build = self.arguments.build
        self.load = os.path.join(build, "bench", "bench-load")
        baseline = os.path.join(build, "bench", "epoll-best")
        ours = os.path.join(build, "tools", "um-tls")
        if os.path.isdir(ours):
            ours = os.path.join(ours, "um-tls")
        if not os.access(self.load, os.X_OK):
            sys.exit(f"bench: {self.load} is not built: './run build' first")
        common = ["--listen", "127.0.0.1:0", "--cert", self.cert, "--key", self.key]
        every = {
            "ours": (ours, lambda w: [ours, "serve", *common, *w.serve]),
            # Memory is what idle-* compares, so there the baseline gives its buffers back.
            "epoll-best": (baseline, lambda w: [baseline, *common, *w.serve] +
                           ["--release-buffers"] * (w.figure == "pss_bytes")),
            # Not by default: shows what giving buffers back costs the baseline elsewhere.
            "epoll-release": (baseline, lambda w: [baseline, *common, *w.serve,
                                                   "--release-buffers"]),
            "epoll-nginx": (baseline, lambda w: [baseline, *common, *w.serve, "--nginx"]),
        }
        self.contenders = {}
        for name in self.arguments.contenders.split(","):
            if name not in every:
                self.leave_out(f"contender '{name}': unknown; there are {', '.join(every)}")
            elif not os.access(every[name][0], os.X_OK):
                self.leave_out(f"contender '{name}': {every[name][0]} is not built")
            else:
                self.contenders[name] = every[name][1]
        if not self.contenders:
            sys.exit("bench: no contender to measure")

    def note(self, what):
        if what not in self.notes:
            say(f"note: {what}")
            self.notes.append(what)

    def leave_out(self, what):
        say(f"left out: {what}")
        self.left_out.append(what)

    def run_load(self, server, workload):
        command = [self.load, "--connect", server.address, "--cubic",
                   "--server-pid", str(server.pid),
                   "--seconds", str(self.arguments.seconds), *workload.load]
        child = self.children.start(command, self.load_cpu, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = child.communicate(timeout=self.arguments.seconds + 90)
        except subprocess.TimeoutExpired:
            raise Failed("the load did not end") from None
        finally:
            self.children.stop(child)
        if child.returncode:
            raise Failed((err.strip().splitlines() or ["the load failed"])[-1])
        values = {k: float(v) for k, v in (pair.split("=") for pair in out.split())}
        values["server_busy"] = values["cpu_us"] * values["rate"] / 1e6
        return values

    def run_idle(self, server, workload):
        """The slope between two numbers of connections: what the process holds anyway,
        and the parts of libraries it shares with the load, drop out."""
        command = [self.load, "--connect", server.address, *workload.load]
        child = self.children.start(command, self.load_cpu, stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        points = []
        try:
            for _ in range(2):
                held = int(read_line(child, 90, "the load").split()[-1])
                time.sleep(0.3)
                points.append((held, server.pss()))
                child.stdin.write("\n")
                child.stdin.flush()
        except (Failed, BrokenPipeError) as failure:
            self.children.stop(child)
            raise Failed(str(failure)) from None
        self.children.stop(child)
        (few, small), (many, large) = points
        return {"pss_bytes": (large - small) / (many - few)}

    def measure_round(self, workload, name, servers):
        if workload.figure == "pss_bytes":
            # A fresh server: a heap that has already grown once would hide the growth.
            server = Server(self, name, workload)
            try:
                return self.run_idle(server, workload)
            finally:
                server.stop()
        if name not in servers:
            servers[name] = Server(self, name, workload)
        server = servers[name]
        try:
            return self.run_load(server, workload)
        except Failed as failure:
            raise Failed(f"{failure}{server.last_words()}") from None

    def measure(self, workload):
        say(f"{workload.name}: {workload.what}")
        values = {name: [] for name in self.contenders}
        servers = {}
        busy, own, start = busy_seconds(self.cpus()), self.own_cpu(servers), time.monotonic()
        try:
            for number in range(self.arguments.rounds):
                for name in list(values):
                    try:
                        values[name].append(self.measure_round(workload, name, servers))
                    except Failed as failure:
                        self.leave_out(f"{workload.name}, {name}: {failure}")
                        del values[name]
                say(f"  round {number + 1}/{self.arguments.rounds}:  " +
                    "   ".join(f"{n} {v[-1][workload.figure]:.2f}" for n, v in values.items()))
            busy, own = busy_seconds(self.cpus()) - busy, self.own_cpu(servers) - own
            others = max(0.0, busy - own) / (time.monotonic() - start) / len(self.cpus())
        finally:
            for server in servers.values():
                server.stop()
        return summarise(workload, values, others if workload.figure == "cpu_us" else None)

    def cpus(self):
        return {self.server_cpu, self.load_cpu}

    def own_cpu(self, servers):
        ended = os.times()
        return (ended.user + ended.system + ended.children_user + ended.children_system +
                sum(cpu_clock(s.pid) for s in servers.values() if s.child.poll() is None))

    def describe_machine(self):
        version = subprocess.run([self.load, "--version"], capture_output=True, text=True)
        return {"cpu": cpu_model(), "cpus": os.cpu_count(), "server_cpu": self.server_cpu,
                "load_cpu": self.load_cpu, "kernel": platform.release(),
                "openssl": version.stdout.strip(), "libc": " ".join(platform.libc_ver()),
                "load_average_before": round(self.load_average, 2)}


# ---- what it comes to ----


def summarise(workload, values, others):
    values = {name: rounds for name, rounds in values.items() if rounds}
    contenders = {}
    for name, rounds in values.items():
        contenders[name] = {key: round(statistics.median(r[key] for r in rounds), 3)
                            for key in rounds[0] if key in
                            ("cpu_us", "rate", "p50_us", "p99_us", "load_cpu_us", "server_busy",
                             "pss_bytes")}
        contenders[name]["rounds"] = [r[workload.figure] for r in rounds]
    result = {"name": workload.name, "what": workload.what, "figure": workload.figure,
              "contenders": contenders, "subject": None, "ratio": {}, "spread": {}, "range": {},
              "unclear": [], "floor_us": None, "others_cpu": others and round(others, 3)}
    if not values:
        return result
    subject = result["subject"] = next(iter(values))
    for name in list(values)[1:]:
        ratios = [a[workload.figure] / b[workload.figure]
                  for a, b in zip(values[subject], values[name])]
        ratio, spread = statistics.median(ratios), max(ratios) - min(ratios)
        result["ratio"][name] = round(ratio, 3)
        result["spread"][name] = round(spread, 3)
        result["range"][name] = [round(min(ratios), 3), round(max(ratios), 3)]
        if spread > abs(1 - ratio) or len(ratios) < 3:
            result["unclear"].append(name)
    return result


def table(result):
    lines = [f"{result['name']}: {result['what']}"]
    memory = result["figure"] == "pss_bytes"
    lines.append("  " + f"{'':14}" + (f"{'PSS B/conn':>11}" if memory else
                 f"{'CPU us/op':>11}{'op/s':>10}{'p50 us':>10}{'p99 us':>10}{'CPU used':>10}"))
    for name, c in result["contenders"].items():
        if memory:
            lines.append(f"  {name:14}{c['pss_bytes']:11.0f}")
        else:
            lines.append(f"  {name:14}{c['cpu_us']:11.2f}{c['rate']:10.0f}{c['p50_us']:10.1f}"
                         f"{c['p99_us']:10.1f}{c['server_busy']:10.0%}")
    for name, ratio in result["ratio"].items():
        low, high = result["range"][name]
        line = f"  {result['subject']} / {name} = {ratio:.3f}  (rounds {low:.3f} to {high:.3f})"
        if name in result["unclear"]:
            line += ("  UNCLEAR: the spread is larger than the difference" if low < high
                     else "  UNCLEAR: too few rounds to know the spread")
        lines.append(line)
    if (result["others_cpu"] or 0) > 0.05:
        lines.append(f"  the machine was not quiet: others used {result['others_cpu']:.0%} "
                     "of both CPUs")
    return "\n".join(lines)


def report(bench, results):
    machine = bench.describe_machine()
    congestion = "cubic congestion control"
    document = {
        "started": bench.started, "machine": machine,
        "method": {"rounds": bench.arguments.rounds, "seconds": bench.arguments.seconds,
                   "quick": bench.arguments.quick, "interleaved": True,
                   "congestion_control": "cubic on both ends, unless a note says otherwise",
                   "cipher": "TLS_AES_128_GCM_SHA256",
                   "certificate": "ECDSA P-256, self-signed",
                   "cpu_time": "process CPU clock (scheduler, nanoseconds), user and system, "
                               "all threads",
                   "ratio": "median over rounds of subject / contender within the round",
                   "spread": "largest minus smallest of those"},
        "workloads": results, "notes": bench.notes, "left_out": bench.left_out,
        "not_measured": NOT_MEASURED,
    }
    print(f"\n{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, "
          f"{machine['openssl']}; server on CPU {machine['server_cpu']}, load on CPU "
          f"{machine['load_cpu']}; {congestion}; {bench.arguments.rounds} interleaved rounds of "
          f"{bench.arguments.seconds:g} s; medians\n")
    for result in results:
        print(table(result) + "\n")
    for note in bench.notes:
        print(f"note: {note}")
    for what in bench.left_out:
        print(f"left out: {what}")
    print("not measured: " + "; ".join(NOT_MEASURED))
    if bench.arguments.json:
        json.dump(document, bench.arguments.json, indent=1)
        bench.arguments.json.write("\n")


def parse():
    parser = argparse.ArgumentParser(
        prog="run bench", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="workloads:\n" + "\n".join(f"  {w.name:20} {w.what}" for w in WORKLOADS))
    parser.add_argument("workload", nargs="*", help="which (default: all)")
    parser.add_argument("--build", required=True, metavar="DIR", help="build directory")
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 5")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--seconds", type=float, metavar="S", help="measured in each round")
    parser.add_argument("--json", type=argparse.FileType("w"), metavar="FILE",
                        help="write everything, rounds too, to FILE")
    parser.add_argument("--contenders", default="ours,epoll-best,epoll-nginx", metavar="A,B,...",
                        help="the first is compared with the others (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 5)
    arguments.seconds = arguments.seconds or (0.5 if arguments.quick else 1.5)
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return arguments


def main():
    arguments = parse()
    known = {w.name: w for w in WORKLOADS}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="bio_uring-bench-") as directory:
        children = Children(directory)
        results = []
        try:
            bench = Bench(arguments, children)
            bench.started = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
            for name in arguments.workload or DEFAULT:
                if name in known:
                    results.append(bench.measure(known[name]))
                else:
                    bench.leave_out(f"workload '{name}': unknown; './run bench --help' lists them")
        except KeyboardInterrupt:
            say("bench: interrupted")
            return 130
        finally:
            children.stop_all()
        report(bench, results)
        return 1 if bench.left_out else 0


if __name__ == "__main__":
    sys.exit(main())

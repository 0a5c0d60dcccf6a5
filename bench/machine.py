"""The machine and the children: pinning, CPU clocks, memory, sockets, system calls."""

import contextlib
import ctypes
import errno
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import time


class Failed(Exception):
    """Something could not be measured; the rest of the run goes on."""


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
            try:
                is_socket = os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
            except FileNotFoundError:  # closed meanwhile
                continue
            fd = libc.syscall(sys_pidfd_getfd, pidfd, int(number), 0) if is_socket else -1
            if fd < 0:
                if is_socket and ctypes.get_errno() != errno.EBADF:
                    return os.strerror(ctypes.get_errno())
                continue
            with socket.socket(fileno=fd) as s:
                if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
                    reason = None
    except OSError as error:
        reason = error.strerror
    finally:
        os.close(pidfd)
    return reason


def why_no_cubic():
    """Why a socket of ours may not have it: an ordinary user may not load or choose it
    everywhere. None: it may."""
    with socket.socket() as s:
        try:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        except OSError as error:
            return error.strerror
    return None


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


def family(pid):
    """The process and its descendants."""
    pids = [pid]
    for parent in pids:
        for task in os.listdir(f"/proc/{parent}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended
                with open(f"/proc/{parent}/task/{task}/children") as f:
                    pids += [int(child) for child in f.read().split()]
    return pids


def pss(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            total += sum(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
    return total


def slab():
    """The kernel's small objects (sockets, file descriptors, epoll, io_uring), whole machine."""
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("Slab:"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---- children ----


class Children:
    """Everything this program started, so that it can stop exactly that."""

    def __init__(self, directory):
        self.directory = directory
        self.running = []
        self.environment = {k: v for k, v in os.environ.items()
                            if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD",
                                                 "UM_ABLATE"))}

    def start(self, command, cpu, environment=None, idle=False, **streams):
        pr_set_pdeathsig = 1
        libc = ctypes.CDLL(None)

        def prepare():
            # Not even a killed benchmark may leave a server behind.
            libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
            os.sched_setaffinity(0, {cpu})
            if idle:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

        child = subprocess.Popen([str(word) for word in command], text=True, preexec_fn=prepare,
                                 env={**self.environment, **(environment or {})}, **streams)
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


# ---- system calls ----


class Syscalls:
    """Counts a process's system calls for a while, with what the machine has."""

    def __init__(self):
        self.tool = None
        event = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter"]
        if shutil.which("perf") and subprocess.run([*event, "--", "true"], capture_output=True,
                                                   check=False).returncode == 0:
            self.tool = "perf"
        elif shutil.which("strace"):
            self.tool = "strace"

    def count(self, pids, seconds):
        counter = self.with_perf if self.tool == "perf" else self.with_strace
        return counter(",".join(map(str, pids)), seconds)

    @staticmethod
    def with_perf(pids, seconds):
        done = subprocess.run(["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", pids,
                               "--", "sleep", str(seconds)], capture_output=True, text=True,
                              check=False)
        found = re.search(r"^(\d+),", done.stderr, re.M)
        if not found:
            raise Failed(f"perf stat counted nothing: {done.stderr.strip()[:100]}")
        return int(found.group(1))

    @staticmethod
    def with_strace(pids, seconds):
        words = ["strace", "-c", "-f", "-qq"]
        for pid in pids.split(","):
            words += ["-p", pid]
        child = subprocess.Popen(words, text=True, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE)
        time.sleep(seconds)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=10)
        found = re.search(r"^100\.00\s+\S+\s+\S*\s*?(\d+)\s.*total$", err, re.M)
        if not found:
            raise Failed(f"strace counted nothing: {err.strip()[:100]}")
        return int(found.group(1))


# ---- profile ----

# Where a sample belongs: by the library its innermost frame is in or, in the kernel, by the
# first of these that any of its frames matches.
LIBRARIES = (("libcrypto", "crypto"), ("libssl", "libssl"), ("libbio_uring", "ours"),
             ("libc.so", "libc"))
KERNEL = ((r"(tcp|ip|inet|__tcp|net_rx|loopback|skb|__skb|sock|__sock)_", "kernel TCP"),
          (r"(__)?io_|io_uring", "kernel io_uring"),
          (r"(do_|ep_|__x64_sys_)?e?poll", "kernel epoll"))


def part_of(frames):
    """`frames`: [(symbol, library)], innermost first."""
    library = frames[0][1]
    if "kernel" in library or library == "[unknown]":
        return next((part for pattern, part in KERNEL
                     if any(re.match(pattern, symbol) for symbol, _ in frames)), "kernel, other")
    return next((part for name, part in LIBRARIES if name in library), "program")


def profile(pids, seconds, directory):
    """Shares of the processes' CPU time, by part."""
    data = os.path.join(directory, "perf.data")
    done = subprocess.run(["perf", "record", "-q", "-F", "2000", "-g", "-o", data, "-p",
                           ",".join(map(str, pids)), "--", "sleep", str(seconds)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"perf record: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    script = subprocess.run(["perf", "script", "-i", data, "-F", "ip,sym,dso"], text=True,
                            capture_output=True, check=False).stdout
    counts, total = {}, 0
    for sample in script.strip().split("\n\n"):
        frames = re.findall(r"^\s*[0-9a-f]+ (.*?)(?:\+0x[0-9a-f]+)? \((.*)\)$", sample, re.M)
        if frames:
            part = part_of(frames)
            counts[part] = counts.get(part, 0) + 1
            total += 1
    return {part: round(n / total, 3) for part, n in sorted(counts.items(), key=lambda x: -x[1])}

"""Servers under attack, and what they hold: processes, descriptors, memory."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

ATTACKER = os.environ["ATTACKER"]
UM_TLS = os.environ["UM_TLS"]
CERTS = os.environ["UM_CERTS"]
PINNED = len(os.sched_getaffinity(0)) > 1
LARGE, SMALL = 100 << 20, 64


def pinned(cpu, *command):
    """The server has a CPU, attackers and client the other one."""
    return ["taskset", "-c", str(cpu), *command] if PINNED else list(command)


def site(folder):
    """What is served: /small and /large."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "small"), "wb") as file:
        file.write(b"x" * SMALL)
    with open(os.path.join(folder, "large"), "ab") as file:
        if file.tell() != LARGE:
            file.truncate(0)
            pattern = os.urandom(1 << 20)
            for _ in range(LARGE >> 20):
                file.write(pattern)
    return folder


class Gone(Exception):
    """The server has ended."""


class Server:
    def __init__(self, command, port=None, **more):
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(pinned(1, *command), stdout=self.said, stderr=self.said,
                                        **more)
        self.pid = self.process.pid
        self.port = port or self.find_port()
        end = time.monotonic() + 20
        while not self.answers():
            if time.monotonic() > end or not self.alive():
                raise RuntimeError(f"{command[0]} does not start: {self.text()}")
            time.sleep(0.05)

    def text(self):
        return os.pread(self.said.fileno(), 1 << 20, 0).decode(errors="replace")

    def find_port(self):
        end = time.monotonic() + 20
        while time.monotonic() < end and self.alive():
            found = re.search(r"listening on \S+:(\d+)\n", self.text())
            if found:
                return int(found.group(1))
            time.sleep(0.02)
        raise RuntimeError(f"the server does not start: {self.text()}")

    def answers(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def alive(self):
        return self.process.poll() is None

    def descriptors(self):
        self.must_live()
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def must_live(self):
        if not self.alive():
            raise Gone

    def kib(self):
        """Resident, and of that the heap."""
        self.must_live()
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            resident = int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))
        with open(f"/proc/{self.pid}/smaps", encoding="ascii", errors="replace") as maps:
            heap = re.search(r"\[heap\]\n(?:.*\n)*?Rss:\s+(\d+)", maps.read())
        return resident, int(heap.group(1)) if heap else 0

    def settle(self, descriptors, patience=20, steady=0.2):
        """Waits until what the attack had opened is closed and memory has not fallen for
        `steady` seconds; descriptors and KiB then."""
        end = time.monotonic() + patience
        while self.alive() and self.descriptors() > descriptors and time.monotonic() < end:
            time.sleep(0.1)
        least = self.kib()[0] + 1
        while self.kib()[0] < least:
            least = self.kib()[0]
            time.sleep(steady)
        return self.descriptors(), *self.kib()

    def stop(self):
        """Its exit code."""
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = "killed after 20 s"
        return code


def um_tls(folder, *options):
    return Server([UM_TLS, "serve", "--listen", "127.0.0.1:0", "--core", "--root", site(folder),
                   "--cert", f"{CERTS}/server.pem", "--key", f"{CERTS}/server.key", *options])


def nginx(folder):
    site(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = folder + "-nginx"
    os.makedirs(state, exist_ok=True)
    temporary = "".join(f"{kind}_temp_path {state};" for kind in
                        ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    with open(f"{state}/nginx.conf", "w", encoding="ascii") as file:
        file.write(f"""
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 65536;
pid {state}/nginx.pid; error_log stderr crit;
events {{ worker_connections 30000; }}
http {{
  access_log off; {temporary} keepalive_requests 1000000000;
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {CERTS}/server.pem; ssl_certificate_key {CERTS}/server.key;
    ssl_protocols TLSv1.2 TLSv1.3; root {folder};
  }}
}}
""")
    return Server([shutil.which("nginx") or "/usr/sbin/nginx", "-p", state, "-c",
                   f"{state}/nginx.conf", "-e", "stderr"], port)


class Attack:
    """A running attacker; ready once its connections are there."""

    def __init__(self, name, port, count, seconds):
        self.process = subprocess.Popen(
            pinned(0, "nice", "-n", "19", ATTACKER, name, str(port), str(count), str(seconds)),
            stdout=subprocess.PIPE, text=True)
        self.early = self.process.stdout.readline()

    def end(self):
        """Its counts: done, refused, disconnected; of one that has ended, none."""
        if self.process.stdout.closed:
            return {}
        self.process.terminate()
        try:
            text = self.process.communicate(timeout=60)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            text = self.process.communicate()[0]
        counts = {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text, re.M)}
        counts["renegotiated"] = text.count("renegotiated")
        return counts


def client(port, seconds, live_gap=1000, new_gap=20000):
    """Microseconds of a live connection's requests, and of new connections."""
    done = subprocess.run(pinned(0, ATTACKER, "client", str(port), str(live_gap), str(new_gap),
                                 str(seconds)), capture_output=True, text=True, check=True,
                          timeout=seconds + 60)
    return json.loads(done.stdout)

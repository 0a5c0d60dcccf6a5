#!/usr/bin/env python3
"""Good and hostile traffic for MINUTES: every byte is checked, memory and descriptors stay flat.

    soak.py MINUTES [--json FILE]

Flat is: of medians over ten seconds each, from the first minute (or third, of a short run) on, the
mean of the last third is at most 2 MiB and 5 descriptors above the mean of the first third, and
a straight line through all of memory's climbs at most 3 MiB from start to end. Attacks take
turns, so that each third has seen all of them in a run of 6 minutes and more.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import ssl
import statistics
import sys
import threading
import time

from servers import CERTS, LARGE, Attack, Server, UM_TLS, um_tls

ATTACKS = [("stops", 100), ("reset-handshake", 1), ("slow-read", 30), ("reset-transfer", 1),
           ("garbage", 1), ("key-update-read", 4), ("half-hello", 300), ("half-close", 1),
           ("key-update-never-read", 4), ("byte-by-byte", 1), ("connect-close", 1),
           ("never-read", 30), ("silent", 300), ("renegotiate", 1)]
TURN = 5   # seconds of each attack


class Traffic:
    """What good clients do, in threads, until told to stop; counts and complaints."""

    def __init__(self, http, echo, large_sum):
        self.http, self.echo, self.large_sum = http, echo, large_sum
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.counts = {}
        self.complaints = []
        kinds = [self.small, self.small, self.large, self.resume, self.echoes, self.echoes,
                 self.leave]
        self.threads = [threading.Thread(target=self.loop, args=(kind,)) for kind in kinds]
        for thread in self.threads:
            thread.start()

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + number

    def loop(self, kind):
        context = ssl.create_default_context(cafile=f"{CERTS}/ca.pem")
        while not self.stop.is_set():
            try:
                kind(context)
            except Exception as failure:   # whatever it is, it is reported
                with self.lock:
                    self.complaints.append(f"{kind.__name__}: {failure!r}")
                time.sleep(0.1)

    def connect(self, context, port, session=None):
        plain = socket.create_connection(("127.0.0.1", port), timeout=30)
        return context.wrap_socket(plain, server_hostname="localhost", session=session)

    def get(self, secure, path, length):
        """The checksum of the answer's body."""
        secure.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        stream, digest = bytearray(), hashlib.sha256()
        while b"\r\n\r\n" not in stream:
            piece = secure.recv(65536)
            if not piece:
                raise AssertionError("no answer")
            stream += piece
        head, _, body = bytes(stream).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise AssertionError(f"answer {head[:60]}")
        got = len(body)
        digest.update(body)
        while got < length:
            piece = secure.recv(min(65536, length - got))
            if not piece:
                raise AssertionError(f"ended after {got} of {length} bytes")
            digest.update(piece)
            got += len(piece)
        self.count("bytes", got)
        return digest.hexdigest()

    def equal(self, left, right, what):
        if left != right:
            raise AssertionError(f"mismatch: {what}")

    def small(self, context):
        with self.connect(context, self.http) as secure:
            for _ in range(20):
                self.equal(self.get(secure, "small", 64), SMALL_SUM, "small file")
                self.count("small files")
                time.sleep(0.005)

    def large(self, context):
        with self.connect(context, self.http) as secure:
            self.equal(self.get(secure, "large", LARGE), self.large_sum, "large file")
        self.count("large files")
        time.sleep(2)

    def resume(self, context):
        with self.connect(context, self.http) as secure:
            self.equal(self.get(secure, "small", 64), SMALL_SUM, "small file")
            session = secure.session
        with self.connect(context, self.http, session) as secure:
            self.equal(self.get(secure, "small", 64), SMALL_SUM, "small file")
            self.count("resumed" if secure.session_reused else "not resumed")
        time.sleep(0.05)

    def echoes(self, context):
        with self.connect(context, self.echo) as secure:
            for _ in range(20):
                sent = random.randbytes(random.choice([1, 64, 1000, 20000, 100000]))
                secure.sendall(sent)
                got = bytearray()
                while len(got) < len(sent):
                    piece = secure.recv(65536)
                    if not piece:
                        raise AssertionError(f"echo ended after {len(got)} of {len(sent)} bytes")
                    got += piece
                self.equal(bytes(got), sent, "echo")
                self.count("bytes", len(sent))
                self.count("echoes")
                time.sleep(0.01)
            secure.unwrap()

    def leave(self, context):
        """A client that goes in the middle of an answer."""
        with self.connect(context, self.http) as secure:
            secure.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            secure.recv(65536)
        self.count("left early")
        time.sleep(0.1)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(60)


SMALL_SUM = hashlib.sha256(b"x" * 64).hexdigest()


def echo_server():
    return Server([UM_TLS, "serve", "--listen", "127.0.0.1:0", "--core", "--echo",
                   "--cert", f"{CERTS}/server.pem", "--key", f"{CERTS}/server.key"])


def siege(port, stop, counts):
    """Attack after attack, each for a turn."""
    while not stop.is_set():
        for name, count in ATTACKS:
            attack = Attack(name, port, count, TURN + 30)
            stop.wait(TURN)
            counts[name] = counts.get(name, 0) + attack.end().get("done", 0)
            if stop.is_set():
                return


def flat(medians, allowed):
    """(is it, mean of the first third, of the last)"""
    third = max(1, len(medians) // 3)
    first, last = statistics.mean(medians[:third]), statistics.mean(medians[-third:])
    return last - first <= allowed, first, last


def climb(medians):
    """Of the straight line through them, from start to end."""
    if len(medians) < 2:
        return 0
    slope = statistics.linear_regression(range(len(medians)), medians).slope
    return slope * (len(medians) - 1)


def bars(medians):
    """Memory over time as a line of characters, from its least to its most."""
    least, most = min(medians), max(medians)
    return "".join(" ▁▂▃▄▅▆▇█"[1 + int(7 * (m - least) / max(1, most - least))] for m in medians)


def main():
    parser = argparse.ArgumentParser(prog="./run soak")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    http = um_tls(os.path.join(os.environ["ABUSE_FOLDER"], "site"))
    echo = echo_server()
    servers = {"http": http, "echo": echo}
    with open(os.path.join(os.environ["ABUSE_FOLDER"], "site", "large"), "rb") as file:
        large_sum = hashlib.sha256(file.read()).hexdigest()
    traffic = Traffic(http.port, echo.port, large_sum)
    hostile, stop = {}, threading.Event()
    sieges = [threading.Thread(target=siege, args=(http.port, stop, hostile))]
    for thread in sieges:
        thread.start()
    samples = {name: [] for name in servers}
    begin, shown, reloads = time.monotonic(), 0, 0
    while time.monotonic() < begin + 60 * arguments.minutes and all(
            server.alive() for server in servers.values()):
        time.sleep(1)
        for name, server in servers.items():
            samples[name].append((*server.kib(), server.descriptors()))
        elapsed = time.monotonic() - begin
        if elapsed >= shown + 10:
            shown += 10
            http.process.send_signal(signal.SIGHUP)
            reloads += 1
            print(f"{shown:5} s " + " ".join(
                f"{name}: {got[-1][0] / 1024:.1f} MiB, {got[-1][2]} fds;"
                for name, got in samples.items()) + f" {traffic.counts.get('bytes', 0) >> 20:,} "
                f"MiB checked, {len(traffic.complaints)} complaints", flush=True)
    stop.set()
    traffic.end()
    for thread in sieges:
        thread.join(60)
    return verdict(arguments, servers, samples, traffic, hostile, reloads)


def verdict(arguments, servers, samples, traffic, hostile, reloads):
    failed = []
    skip = int(min(60, 20 * arguments.minutes))
    report = {"minutes": arguments.minutes, "good": traffic.counts, "hostile": hostile,
              "reloads": reloads, "complaints": traffic.complaints[:50], "servers": {}}
    print(f"good: {traffic.counts}\nhostile: {hostile}\nreloads: {reloads}")
    for name, server in servers.items():
        late = samples[name][skip:]
        tens = [late[at:at + 10] for at in range(0, len(late), 10)]
        memory = [statistics.median(s[0] for s in ten) for ten in tens]
        files = [statistics.median(s[2] for s in ten) for ten in tens]
        good, first, last = flat(memory, 2048)
        good_files, files_first, files_last = flat(files, 5)
        rise, code = climb(memory), server.stop()
        print(f"{name}: memory {first / 1024:.1f} MiB, later {last / 1024:.1f} (WANTED <= 2 more), "
              f"line climbs {rise / 1024:.1f} MiB (WANTED <= 3); descriptors {files_first:.0f}, "
              f"later {files_last:.0f} (WANTED <= 5 more); exit {code} (WANTED 0)\n  {bars(memory)}")
        if not (good and good_files and rise <= 3072 and code == 0):
            failed.append(name)
        report["servers"][name] = {"memory_kib": memory, "descriptors": files, "exit": code}
    if traffic.complaints:
        failed.append("traffic")
        print("\n".join(traffic.complaints[:10]))
    print(f"mismatched: {sum('mismatch' in text for text in traffic.complaints)} (WANTED 0); "
          f"other complaints: {sum('mismatch' not in text for text in traffic.complaints)}")
    if arguments.json:
        with open(arguments.json, "w", encoding="ascii") as file:
            json.dump(report, file, indent=1)
    print(f"not as wanted: {', '.join(failed)}" if failed else "Everything wanted was seen.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What um-tls must show at size: bytes, connections, few syscalls, and nothing left behind.

The sizes are such that the whole takes a minute; the full ones by environment:

    UM_INTEROP_FILE_MIB=100      of the file that 64 curls download at once
    UM_INTEROP_ECHO_MIB=256      there and back through connect and serve --echo
    UM_INTEROP_IDLE=10000        connections held on one thread
    UM_INTEROP_CHURN=100000      connections opened and ended in every way
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import socket
import subprocess
import threading
import time

from harness import (PATIENCE, SANITIZED, UM_TLS, Case, Child, Server, backend, cert, client_context,
                     client_hello, cut_off, exchange, main, note, number, reset, run, tls, um_tls, wait_until)

MIB = 1024 * 1024
SLOW = 10 * PATIENCE


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") \
            else hashlib.sha256(file.read()).hexdigest()


def make_file(path, size):
    with open(path, "wb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - start)))
    return sha256_of(path)


class Bytes(Case):
    def test_parallel_downloads(self):
        """64 curls at once, each the same checksum."""
        curl, count = self.need("curl"), 64
        size = number("UM_INTEROP_FILE_MIB", 10) * MIB
        folder, sums, trouble = self.folder(), [], []
        wanted = make_file(os.path.join(folder, "file.bin"), size)
        server = self.serve("--root", folder)

        def download():
            command = [curl, "-q", "-sS", "--max-time", str(SLOW), "--cacert", cert("ca.pem"),
                       server.url + "/file.bin"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
                digest = hashlib.sha256()
                while piece := child.stdout.read(MIB):
                    digest.update(piece)
                trouble.append(child.stderr.read())
            sums.append((child.returncode, digest.hexdigest()))

        started = time.monotonic()
        threads = [threading.Thread(target=download) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - started
        self.assertEqual(sums, [(0, wanted)] * count, b"".join(trouble))
        self.assertEqual(server.threads(), 1)
        note(f"{count} downloads of {size // MIB} MiB at once: {count * size / MIB / seconds:.0f} MiB/s"
             f" with curl and checksums on the same machine; RSS {server.resident()} KiB")

    def test_there_and_back(self):
        """Up and down at once, through our client and our server: equal checksums."""
        size = number("UM_INTEROP_ECHO_MIB", 32) * MIB
        folder = self.folder()
        source, back = os.path.join(folder, "source"), os.path.join(folder, "back")
        wanted = make_file(source, size)
        for version in ("1.2", "1.3"):
            with self.subTest(version=version):
                server = self.serve("--echo")
                started = time.monotonic()
                with open(source, "rb") as stdin, open(back, "wb") as stdout:
                    code = subprocess.run([UM_TLS, "connect", server.address, "--ca",
                                           cert("ca.pem"), "--max-tls", version], stdin=stdin,
                                          stdout=stdout, timeout=SLOW, check=False).returncode
                seconds = time.monotonic() - started
                self.assertEqual(code, 0)
                self.assertEqual(sha256_of(back), wanted)
                note(f"{size // MIB} MiB there and back, TLS {version}: {size / MIB / seconds:.0f} "
                     f"MiB/s each way; server RSS {server.resident()} KiB")


class Idle(Case):
    def test_held(self):
        """Many connections on one thread; all of them, and some of another client, echo after."""
        count = number("UM_INTEROP_IDLE", 2000)
        try:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if hard != resource.RLIM_INFINITY and hard < count + 200:
                resource.setrlimit(resource.RLIMIT_NOFILE, (count + 200, count + 200))
        except (ValueError, OSError):
            self.skipTest(f"{count} connections need more descriptors than {hard} (ulimit -Hn)")
        server = self.serve("--echo", "--idle-timeout", str(SLOW))
        descriptors = server.descriptors()
        self.echoes(server.port)
        wait_until(lambda: server.descriptors() == descriptors, "the first one is closed")
        before = server.resident()
        with contextlib.ExitStack() as stack:
            context = client_context()
            sample = [stack.enter_context(tls(server.port, context)) for _ in range(20)]
            load = Child(UM_TLS, "load", server.address, "--ca", cert("ca.pem"), "--idle", "--echo",
                         "--connections", str(count - len(sample)), "--duration", "3", "--json",
                         "--timeout", str(PATIENCE))
            self.addCleanup(load.stop)
            load.wait_for(b"holding", "err")
            held = server.descriptors() - descriptors
            self.assertEqual((held, server.threads()), (count, 1))
            peak = server.resident() - before
            note(f"{held} connections on one thread: {peak / held:.1f} KiB each")
            data = os.urandom(5000)
            for connection in sample[:10]:
                self.same(exchange(connection, data), data)
            self.assertEqual(load.wait(), 0, load.said("err")[-500:])
            result = json.loads(load.said())
            self.assertEqual((result["operations"], result["errors"]["total"]),
                             (count - len(sample), 0))
            for connection in sample:
                self.same(exchange(connection, data), data)
                connection.unwrap()
        wait_until(lambda: server.descriptors() <= descriptors, "all are closed")
        if not SANITIZED and held >= 1000:
            wait_until(lambda: server.resident() - before < peak / 3, "memory is given back")
            note(f"then {(server.resident() - before) / held:.1f} KiB of it are left each")


class Syscalls(Case):
    def test_busy(self):
        """64 connections that echo: the kernel is entered far less than once a message; on epoll
        for each receive and each send, and little more."""
        strace = self.need("strace")
        if SANITIZED:
            self.skipTest("a sanitizer's leak check cannot run under ptrace")
        if run(strace, "-c", "-o", os.devnull, "true").code:
            self.skipTest("strace may not trace here")
        counted = os.path.join(self.folder(), "counted")
        server = self.traced(strace, counted)
        load = um_tls("load", server.address, "--ca", cert("ca.pem"), "--echo", "--connections",
                      "64", "--requests", "200000", "--duration", "30", "--json")
        self.expect(load, 0)
        messages = json.loads(load.out)["operations"]
        os.kill(self.traced_pid(server), 15)
        self.assertEqual(server.wait(), 0)
        with open(counted, encoding="ascii") as file:
            table = file.read()
        total = int(re.search(r"^100\.00\s+\S+\s+(?:\S+\s+)?(\d+)\s+(?:\d+\s+)?total$", table,
                              re.M).group(1))
        note(f"{total} syscalls for {messages} messages, from the server's start to its end: "
             f"{total / messages:.4f} each")
        self.assertLess(total / messages, 0.2 if backend() == "uring" else 2.2, table)

    def traced(self, strace, counted):
        return self.start(Server("--echo", prefix=(strace, "-f", "-c", "-o", counted)))

    @staticmethod
    def traced_pid(server):
        with open(f"/proc/{server.pid}/task/{server.pid}/children", encoding="ascii") as file:
            return int(file.read().split()[0])


class Churn(Case):
    """Connections that end in every way there is leave nothing behind."""
    THREADS = 8

    def setUp(self):
        self.server = self.serve("--echo", "--handshake-timeout", "1")
        self.hello = client_hello()
        self.context = client_context()
        self.source = 0

    def plain(self):
        """From addresses that change, or the ports of one would run out."""
        self.source = (self.source + 1) % 200
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE,
                                        source_address=(f"127.0.1.{self.source + 1}", 0))

    def shaken(self):
        connection = self.context.wrap_socket(self.plain(), server_hostname="localhost",
                                              suppress_ragged_eofs=False)
        if exchange(connection, b"hello") != b"hello":
            raise AssertionError("another echo")
        return connection

    def clean(self):
        with self.shaken() as connection:
            connection.unwrap()

    def without_close_notify(self):
        cut_off(self.shaken())

    def with_reset(self):
        reset(self.shaken())

    def reset_in_handshake(self):
        plain = self.plain()
        plain.sendall(self.hello[:len(self.hello) // 2])
        reset(plain)

    def reset_after_hello(self):
        plain = self.plain()
        plain.sendall(self.hello)
        reset(plain)

    def closed_in_handshake(self):
        with self.plain() as plain:
            plain.sendall(self.hello[:100])

    def garbage(self):
        with self.plain() as plain, contextlib.suppress(OSError):
            plain.sendall(b"\x16\x03\x01\x00\x20" + os.urandom(32))
            plain.recv(100)

    def plain_http(self):
        with self.plain() as plain, contextlib.suppress(OSError):
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            plain.recv(100)

    def silent(self):
        """Closed by the server when its time for a handshake is over."""
        return self.plain()

    def half_silent(self):
        plain = self.plain()
        plain.sendall(self.hello[:50])
        return plain

    WAYS = (clean, without_close_notify, with_reset, reset_in_handshake, reset_after_hello,
            closed_in_handshake, garbage, plain_http, silent, half_silent)

    def churn(self, count):
        """That many connections in all; those that wait for their end are seen to get it."""
        trouble = []

        def work(count):
            waiting = []
            try:
                for turn in range(count):
                    plain = self.WAYS[turn % len(self.WAYS)](self)
                    if plain:
                        waiting.append(plain)
                    if len(waiting) >= 24 or (waiting and turn == count - 1):
                        for plain in waiting:
                            with plain, contextlib.suppress(ConnectionResetError):
                                if plain.recv(1):
                                    raise AssertionError("bytes for a client that said nothing")
                        waiting = []
            except Exception as problem:  # told to the test
                trouble.append(problem)

        threads = [threading.Thread(target=work, args=(count // self.THREADS,))
                   for _ in range(self.THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(trouble, [])

    def test_nothing_left(self):
        count = number("UM_INTEROP_CHURN", 5000)
        descriptors = self.server.descriptors()
        beside = tls(self.server.port)
        self.addCleanup(beside.close)
        figures = []
        # Buffers that wait for their first use, and the peak of so many at once, are no leak:
        # so all buffers are used, and a part of the connections comes, before the first figure.
        self.echoes(self.server.port, 32 * MIB)
        for share in (1, 2, 2):
            self.churn(count * share // 5)
            self.assertEqual(exchange(beside, b"still here"), b"still here")
            wait_until(lambda: self.server.descriptors() <= descriptors + 1, "all are closed")
            figures.append(self.server.resident())
        note(f"{count} connections: {self.server.descriptors()} descriptors as before, RSS "
             f"{figures[0]} KiB after a fifth, {figures[1]}, {figures[2]} KiB at the end")
        self.echoes(self.server.port)
        if not SANITIZED:  # which keeps freed memory for a while
            self.assertLess(figures[2] - figures[0], max(1024, count // 50), figures)


if __name__ == "__main__":
    main()

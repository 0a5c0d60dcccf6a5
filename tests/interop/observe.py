#!/usr/bin/env python3
"""Looking into a running um-tls serve: metrics, the list of fibers, the key log, UM_LOG."""

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import urllib.request

from harness import PATIENCE, UM_TLS, Case, Server, cert, client_hello, free_port, listening, \
    main, pair, receive_all, run, tcp, tls, um_tls, wait_until

SAMPLE = re.compile(r'([a-z_0-9]+)\{(\w+="[^"]*"(?:,\w+="[^"]*")*)\} (\S+)')
# The distribution's parser, which only the distribution's Python can load.
PARSE = """
import sys
from prometheus_client.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples: print(family.type, sample.name)
"""


class Metrics(Case):
    def serve(self, *options):
        server = self.start(Server("--metrics", "127.0.0.1:0", *options), code=0)
        server.metrics = server.wait_for(rb"metrics on (http://\S+:(\d+)/metrics)\n", "err")
        return server

    def scrape(self, server):
        with urllib.request.urlopen(server.metrics.group(1).decode(), timeout=30) as reply:
            self.assertEqual(reply.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
            return reply.read().decode()

    def values(self, server):
        """{name: {labels: value}}"""
        found = {}
        for line in self.scrape(server).splitlines():
            if line.startswith("# "):
                continue
            name, labels, value = SAMPLE.fullmatch(line).groups()
            key = tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))
            self.assertNotIn(key, found.setdefault(name, {}), f"{name} twice")
            found[name][key] = float(value)
        return found

    def total(self, server, name):
        return sum(self.values(server)["bio_uring_" + name].values())

    def test_counts_what_happened(self):
        server = self.serve("--body", "1000", "--threads", "2")
        for _ in range(5):
            done = run("curl", "-sS", "--cacert", cert("ca.pem"), server.url)
            self.assertEqual((done.code, len(done.out)), (0, 1000))
        with tcp(server.port) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            receive_all(plain)
        with tls(server.port):
            wait_until(lambda: self.total(server, "tls_open") == 1, "one connection open")
            self.assertEqual(self.total(server, "tls_parked"), 1)
        wait_until(lambda: self.total(server, "tls_open") == 0, "all closed")
        seen = self.values(server)

        def total(name):
            return sum(seen["bio_uring_" + name].values())

        self.assertEqual(total("tls_accepted_total"), 7)
        self.assertEqual(total("tls_handshakes_total"), 6)
        self.assertEqual(total("tls_failed_total"), 1)
        self.assertEqual(total("tls_handshake_seconds_count"), 6)
        self.assertGreater(total("tls_handshake_seconds_sum"), 0)
        self.assertGreater(total("reactor_sent_bytes_total"), 5000)
        self.assertEqual(len(seen["bio_uring_reactor_ticks_total"]), 2)
        for name in ("reactor_busy_seconds", "tls_handshake_seconds"):
            self.buckets_fit(seen, "bio_uring_" + name)

    def buckets_fit(self, seen, name):
        """They only grow, and end with the count."""
        for reactor in "01":
            bounds = sorted((float(dict(key)["le"]), value) for key, value in
                            seen[name + "_bucket"].items() if dict(key)["reactor"] == reactor)
            counts = [value for _, value in bounds]
            self.assertEqual(counts, sorted(counts))
            self.assertEqual(counts[-1], seen[name + "_count"][(("reactor", reactor),)])

    def test_promtool(self):
        if not shutil.which("promtool"):
            self.skipTest("promtool is not installed")
        done = run("promtool", "check", "metrics", stdin=self.scrape(self.serve("--echo")).encode())
        self.assertEqual((done.code, done.out + done.err), (0, b""))

    def test_parser_of_the_distribution(self):
        python = "/usr/bin/python3"
        if run(python, "-c", "import prometheus_client").code:
            self.skipTest("python3-prometheus-client is not installed")
        done = run(python, "-c", PARSE, stdin=self.scrape(self.serve("--echo")).encode())
        self.expect(done, 0, rb"counter bio_uring_tls_accepted_total\n.*gauge bio_uring_tls_open\n"
                             rb".*histogram bio_uring_tls_handshake_seconds_bucket\n", rb"\A\Z")

    def ask(self, server, request, patient=True):
        with socket.create_connection(("127.0.0.1", int(server.metrics.group(2))), timeout=60) as plain:
            plain.sendall(request)
            return receive_all(plain) if patient else plain

    def test_bad_requests(self):
        server = self.serve("--echo")
        for request, status in ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
                                (b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
                                (b"rubbish\r\n\r\n", b"400"),
                                (b"GET /" + b"x" * 8000 + b" HTTP/1.1\r\n\r\n", b"431")):
            self.assertEqual(self.ask(server, request)[9:12], status, request[:20])
        self.ask(server, b"GET /met", patient=False)  # goes away
        self.assertIn("bio_uring_info", self.scrape(server))

    def test_a_scrape_in_progress_does_not_hold_up_the_end(self):
        server = self.serve("--echo")
        with socket.create_connection(("127.0.0.1", int(server.metrics.group(2)))) as plain:
            plain.sendall(b"GET /metrics HTTP/1.1\r\n")
            server.process.terminate()
            self.assertEqual(server.wait(), 0)

    def test_many_scrapes_at_once(self):
        """All are answered, and none waits for a copy that another one took."""
        server = self.serve("--echo", "--threads", "4")
        address = ("127.0.0.1", int(server.metrics.group(2)))
        for _ in range(5):
            with contextlib.ExitStack() as stack:
                scrapes = [stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
                           for _ in range(100)]
                for plain in scrapes:
                    plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                for plain in scrapes:
                    self.assertIn(b" 200 OK", receive_all(plain)[:20])

    def test_slow_scrapers_take_no_descriptors(self):
        """32 at a time are let in, for five seconds; who is served does not notice."""
        server = self.serve("--echo")
        self.echoes(server.port)
        before = server.descriptors()
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                slow = socket.create_connection(("127.0.0.1", int(server.metrics.group(2))))
                stack.enter_context(slow).sendall(b"GET /met")
            wait_until(lambda: server.descriptors() > before, "the first is let in")
            for _ in range(5):
                self.echoes(server.port)
                self.assertLessEqual(server.descriptors(), before + 32 + 1)
        self.scrape(server)

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            certificate, key = pair("server")
            done = um_tls("serve", "--listen", "127.0.0.1:0", "--cert", certificate, "--key", key, "--echo",
                          "--metrics", f"127.0.0.1:{taken.getsockname()[1]}")
        self.one_line(done, 73, rb"--metrics: .*[Aa]ddress already in use")
        done = um_tls("serve", "--cert", certificate, "--key", key, "--echo", "--metrics", "nine")
        self.one_line(done, 64, rb"--metrics nine: wanted is HOST:PORT")


class Fibers(Case):
    def test_sigusr1_lists_them_and_serving_goes_on(self):
        server = self.start(Server("--body", "10", "--threads", "2"))
        with tls(server.port) as connection, tcp(server.port) as half:
            half.sendall(client_hello()[:50])
            connection.sendall(b"GET / HTTP/1.1\r\nHo")
            for times in (1, 2, 3):
                os.kill(server.pid, signal.SIGUSR1)
                wait_until(lambda: server.said("err").count(b"supervisor: waiting") == times, "listed")
            server.wait_for(rb"reactor 1: \d+ connections, \d+ of them parked", "err")
            server.wait_for(rb"fiber 0x[0-9a-f]+ accepting: waiting for accept on fd \d+ for \d+\.\d+ s", "err")
            connection.sendall(b"st: x\r\n\r\n")
            self.assertEqual(connection.recv(4096)[:15], b"HTTP/1.1 200 OK")


class KeyLog(Case):
    def secrets(self, path):
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()
        for line in lines:
            self.assertTrue(re.fullmatch(r"[A-Z_0-9]+ [0-9a-f]{64} [0-9a-f]{64,96}", line), line)
        return set(lines)

    def test_both_ends_log_the_same_secrets(self):
        folder = self.folder()
        theirs, ours = os.path.join(folder, "server"), os.path.join(folder, "client")
        for version in ("1.2", "1.3"):
            server = self.start(Server("--echo", env={**os.environ, "SSLKEYLOGFILE": theirs}))
            server.wait_for(rb"SSLKEYLOGFILE is set", "err")
            done = um_tls("connect", server.address, "--ca", cert("ca.pem"), "--max-tls", version,
                          stdin=b"hello", env={**os.environ, "SSLKEYLOGFILE": ours})
            self.assertEqual((done.code, done.out), (0, b"hello"), done)
            server.stop()
        self.assertEqual(self.secrets(theirs), self.secrets(ours))
        labels = {line.split()[0] for line in self.secrets(ours)}
        self.assertIn("CLIENT_RANDOM", labels)
        self.assertIn("SERVER_TRAFFIC_SECRET_0", labels)
        self.assertEqual(os.stat(ours).st_mode & 0o777, 0o600)

    def test_off_unless_asked(self):
        environment = {k: v for k, v in os.environ.items() if k != "SSLKEYLOGFILE"}
        server = self.start(Server("--echo", env=environment))
        with tls(server.port):
            pass
        self.assertNotIn(b"SSLKEYLOGFILE", server.said("err"))

    def test_full_disk_does_not_end_a_handshake(self):
        server = self.start(Server("--echo", env={**os.environ, "SSLKEYLOGFILE": "/dev/full"}))
        with tls(server.port) as connection:
            connection.sendall(b"hello")
            self.assertEqual(connection.recv(5), b"hello")
        with tls(server.port):
            pass
        self.assertEqual(server.said("err").count(b"key log: No space left on device"), 1)

    def test_a_file_that_cannot_be_opened(self):
        certificate, key = pair("server")
        done = run(UM_TLS, "serve", "--listen", "127.0.0.1:0", "--cert", certificate, "--key", key, "--echo",
                   env={**os.environ, "SSLKEYLOGFILE": "/nowhere/keys"})
        self.one_line(done, 66, rb"key log /nowhere/keys: No such file")


class Log(Case):
    def test_levels(self):
        server = self.start(Server("--echo", env={**os.environ, "UM_LOG": "debug"}))
        with tls(server.port):
            pass
        server.wait_for(rb"bio_uring info: reactor: \w+, \d+ entries", "err")
        server.wait_for(rb"bio_uring debug: fd \d+: TLSv1\.3, TLS_AES", "err")


class Unread(Case):
    """Messages go to a pipe that nobody reads: what serves goes on, and ends when it is told to."""

    def full_pipe(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        return reader, writer

    def test_messages(self):
        reader, writer = self.full_pipe()
        port = free_port()
        process = subprocess.Popen([UM_TLS, "serve", "--listen", f"127.0.0.1:{port}", "--cert",
                                    pair("server")[0], "--key", pair("server")[1], "--echo", "--verbose"],
                                   stdout=subprocess.DEVNULL, stderr=writer, env={**os.environ, "UM_LOG": "debug"})
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        os.close(writer)
        wait_until(lambda: listening(port), "listening")
        for sent in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR1):
            process.send_signal(sent)
            self.echoes(port)
        os.read(reader, 1 << 20)   # from now on somebody reads
        process.send_signal(signal.SIGHUP)
        said = b""
        while b"CAs reloaded" not in said:
            self.assertTrue(select.select([reader], [], [], PATIENCE)[0], said)
            said += os.read(reader, 65536)
        self.assertRegex(said, rb"um-tls serve: \d+ messages were lost: nobody read them\n")
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_key_log(self):
        """A FIFO: nobody has opened it, which is said; and nobody reads it."""
        fifo = os.path.join(self.folder(), "keys")
        os.mkfifo(fifo)
        environment = {**os.environ, "SSLKEYLOGFILE": fifo}
        done = run(UM_TLS, "serve", "--listen", "127.0.0.1:0", "--cert", pair("server")[0], "--key",
                   pair("server")[1], "--echo", env=environment)
        self.one_line(done, 66, rb"key log .*keys: No such device or address")
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        server = self.start(Server("--echo", env=environment))
        for _ in range(10):   # a kilobyte of secrets each
            self.echoes(server.port, size=100)
        server.wait_for(rb"key log: .*: secrets are dropped", "err")


class DiskFull(Case):
    """Nothing that is written can be: what serves goes on, what was to tell something fails."""

    def full(self, *command, **more):
        with open("/dev/full", "wb") as full:
            return subprocess.run([UM_TLS, *command], stdout=full, stderr=subprocess.PIPE,
                                  timeout=PATIENCE, check=False, **more)

    def test_serve(self):
        port, metrics = free_port(), free_port()
        certificate, key = pair("server")
        environment = {**os.environ, "SSLKEYLOGFILE": "/dev/full", "UM_LOG": "debug"}
        with open("/dev/full", "wb") as full:
            process = subprocess.Popen(
                [UM_TLS, "serve", "--listen", f"127.0.0.1:{port}", "--cert", certificate,
                 "--key", key, "--echo", "--verbose", "--threads", "2",
                 "--metrics", f"127.0.0.1:{metrics}"],
                stdout=full, stderr=full, env=environment)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_until(lambda: listening(port), "listening")
        for _ in range(20):
            with tcp(port) as plain:
                plain.sendall(b"GET / HTTP/1.0\r\n\r\n")  # a line about it
                receive_all(plain)
        for sent in (signal.SIGUSR1, signal.SIGHUP):
            process.send_signal(sent)
            self.echoes(port)
        address = f"http://127.0.0.1:{metrics}/metrics"
        with urllib.request.urlopen(address, timeout=PATIENCE) as reply:
            self.assertIn(b"bio_uring_tls_failed_total", reply.read())
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_serve_says_where_it_listens(self):
        certificate, key = pair("server")
        with open("/dev/full", "wb") as full:
            process = subprocess.Popen(
                [UM_TLS, "serve", "--listen", "127.0.0.1:0", "--cert", certificate,
                 "--key", key, "--echo"],
                stdout=full, stderr=subprocess.PIPE)
        with process:
            line = process.stderr.readline()
            told = re.search(rb"listening on 127\.0\.0\.1:(\d+), .*: No space left", line)
            self.echoes(int(told[1]))
            process.terminate()
            self.assertEqual((process.wait(PATIENCE), process.stderr.read()), (0, b""))

    def test_results_that_are_lost(self):
        server = self.start(Server("--body", "10"), code=0)
        fetch = ("connect", server.address, "--ca", cert("ca.pem"))
        load = ("load", server.address, "--ca", cert("ca.pem"), "--http", "/", "--requests", "10")
        for command in (("--help",), ("--version",), ("serve", "--help"), load, (*load, "--json"),
                        fetch):
            done = self.full(*command, input=b"GET / HTTP/1.0\r\n\r\n")
            self.assertEqual(done.returncode, 74, command)
            self.assertIn(b"cannot write to standard output: No space left", done.stderr, command)


if __name__ == "__main__":
    main()

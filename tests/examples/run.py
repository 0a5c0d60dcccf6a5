#!/usr/bin/env python3
"""Runs every program of examples/ against something it did not come with, and reads what it says.

    run.py BUILT-EXAMPLES EXAMPLES-SOURCE [--um-tls PROGRAM] [TEST...]

The peers are Python's ssl, openssl s_client and s_server, um-tls, and the other examples. Also held
here: the examples' promised lengths, and that two lines make the blocking client asynchronous.
Reports in TAP, which meson reads.
"""

import argparse
import asyncio
import contextlib
import difflib
import os
import random
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BUILT = SOURCE = UM_TLS = ""
FILES = {}      # ca, chain, key: made once by certs/make.sh
PATIENCE = 60   # seconds until something that should have happened is called stuck


# ---- helpers ----

def example(name):
    return os.path.join(BUILT, name)


def source(name):
    with open(os.path.join(SOURCE, name), encoding="utf-8") as stream:
        return stream.read()


def run(*command, stdin=b"", timeout=PATIENCE, **more):
    return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, **more)


def free_address():
    """An address for a server that takes its port as an argument: not from the range out of
    which the kernel picks ports for outgoing connections."""
    for _ in range(200):
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port, f"127.0.0.1:{port}"
            except OSError:
                continue
    raise RuntimeError("no free port between 20000 and 29999")


@contextlib.contextmanager
def started(*command, until=b" on "):
    """A server that says on stdout when it listens; ended with SIGTERM."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = b"first"
        while line and until not in line:
            line = process.stdout.readline()
        if not line:
            process.kill()
            raise AssertionError(f"{command}: {process.communicate()[1]}")
        yield process, line.decode()
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise AssertionError(f"{command}: did not end at SIGTERM") from None


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FILES["chain"], FILES["key"])
    return context


def client_context():
    return ssl.create_default_context(cafile=FILES["ca"])


@contextlib.contextmanager
def tls_server(converse):
    """A thread that accepts one connection and gives it to converse(); yields the port. What
    converse() raises fails the test."""
    trouble = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def serve():
            try:
                plain, _ = listener.accept()
                plain.settimeout(PATIENCE)
                with server_context().wrap_socket(plain, server_side=True) as tls:
                    converse(tls)
            except Exception as problem:  # handed to the test below
                trouble.append(problem)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()
    if trouble:
        raise trouble[0]


class Http:
    """An HTTPS server for many clients. With `together`, no request is answered before so many
    connections have asked; `peak` is how many were open and waiting at the same time then."""

    def __init__(self, body, together=1, host="127.0.0.1", port=0):
        self.body, self.together, self.host, self.port = body, together, host, port
        self.waiting = self.peak = self.served = 0
        self.at_peak = None     # called once, when all are there
        self.ready = threading.Event()

    async def answer(self, reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.waiting += 1
            self.peak = max(self.peak, self.waiting)
            if self.waiting == self.together:
                if self.at_peak:
                    self.at_peak()
                self.gate.set()
            await self.gate.wait()
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(self.body)}\r\n\r\n"
            writer.write(head.encode() + self.body)
            await writer.drain()
            self.served += 1
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            writer.close()

    async def main(self):
        self.gate, self.stop = asyncio.Event(), asyncio.Event()
        self.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self.answer, self.host, self.port,
                                            ssl=server_context(), backlog=4096,
                                            ssl_handshake_timeout=PATIENCE)
        self.port = str(server.sockets[0].getsockname()[1])
        self.ready.set()
        await self.stop.wait()
        server.close()
        self.gate.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others, timeout=5) if others else None

    def __enter__(self):
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main()))
        self.thread.start()
        self.ready.wait(PATIENCE)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()


class Case(unittest.TestCase):
    def expect(self, done, code, *patterns):
        """The exit code, and what must be in the output."""
        said = done.stdout + done.stderr
        shown = ascii(said[:300] + said[-700:])
        self.assertEqual(done.returncode, code, shown)
        for pattern in patterns:
            self.assertTrue(re.search(pattern, said), f"{pattern} is not in {shown}")

    def same(self, got, expected):
        """assertEqual() that does not print megabytes."""
        self.assertTrue(got == expected,
                        f"{len(got)} bytes, {ascii(got[:80])}, instead of {len(expected)}")


# ---- the tests ----

class Sources(Case):
    def test_lengths(self):
        self.assertLess(source("echo_server.c").count("\n"), 60)
        self.assertLess(source("https_get.c").count("\n"), 40)
        for name in os.listdir(SOURCE):
            if name.endswith(".c"):
                widest = max(map(len, source(name).splitlines()))
                self.assertLessEqual(widest, 100, name)

    def test_public_headers_only(self):
        for name in os.listdir(SOURCE):
            if name.endswith(".c"):
                self.assertNotRegex(source(name), r'#include "', name)
        self.assertNotIn("bio_uring", re.sub(r"/\*.*?\*/", "", source("blocking_client.c"),
                                             flags=re.S))

    def test_two_lines(self):
        """Two lines of fetch() differ, and README.md shows exactly those."""
        bodies = [re.search(r"^static int fetch\(.*?^}\n", source(name), re.S | re.M).group()
                  for name in ("blocking_client.c", "async_client.c")]
        diff = [line for line in difflib.ndiff(*(body.splitlines() for body in bodies))
                if line[0] in "-+"]
        self.assertEqual(len(diff), 4, diff)
        with open(os.path.join(SOURCE, "..", "README.md"), encoding="utf-8") as stream:
            shown = re.search(r"```diff\n(.*?)```", stream.read(), re.S).group(1)
        marked = sorted(line for line in shown.splitlines() if line[0] in "-+")
        self.assertEqual(marked, sorted(line[0] + line[2:] for line in diff))


class EchoServer(Case):
    def setUp(self):
        self.port, address = free_address()
        context = started(example("echo_server"), address, FILES["chain"], FILES["key"])
        self.server, _ = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    def connect(self):
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        return client_context().wrap_socket(plain, server_hostname="localhost")

    def receive(self, tls, length):
        data = b""
        while len(data) < length:
            piece = tls.recv(65536)
            self.assertTrue(piece, f"ended after {len(data)} of {length} bytes")
            data += piece
        return data

    def test_python(self):
        """Small and large messages, several on one connection, a clean end."""
        with self.connect() as tls:
            for length in (1, 100, 16384, 16385, 100000, 1):
                sent = os.urandom(length)
                tls.sendall(sent)
                self.same(self.receive(tls, length), sent)
            tls.unwrap()    # fails unless the peer sends close_notify

    def test_many(self):
        """Connections parked side by side answer each its own."""
        open_ones = [self.connect() for _ in range(50)]
        for number, tls in enumerate(open_ones):
            tls.sendall(b"number %d" % number)
        for number, tls in enumerate(open_ones):
            expected = b"number %d" % number
            self.assertEqual(self.receive(tls, len(expected)), expected)
        for tls in open_ones:
            tls.close()

    def test_s_client(self):
        done = run("openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-CAfile",
                   FILES["ca"], "-verify_return_error", "-verify_hostname", "localhost",
                   "-quiet", "-no_ign_eof", stdin=b"")
        self.expect(done, 0)
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-CAfile", FILES["ca"],
             "-verify_return_error", "-quiet", "-no_ign_eof"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        client.stdin.write(b"from s_client\n")
        client.stdin.flush()
        self.assertEqual(client.stdout.readline(), b"from s_client\n")
        client.communicate(timeout=PATIENCE)

    def test_duplex_chat(self):
        """Our own client: what was typed comes back, and the end of the input ends it."""
        typed = b"".join(b"line %d\n" % n for n in range(2000))
        done = run(example("duplex_chat"), "localhost", str(self.port), FILES["ca"], stdin=typed)
        self.expect(done, 0)
        self.same(done.stdout, typed)

    def test_sigterm(self):
        """Ends with 0 and close_notify for a parked connection."""
        with self.connect() as tls:
            tls.sendall(b"x")
            self.receive(tls, 1)
            self.server.send_signal(signal.SIGTERM)
            self.assertEqual(tls.recv(1), b"")
        self.assertEqual(self.server.wait(PATIENCE), 0)


class EchoServerTrouble(Case):
    def test_one_clear_line(self):
        port, address = free_address()
        missing = run(example("echo_server"), address, "/nonexistent.pem", FILES["key"])
        self.expect(missing, 1, rb"/nonexistent\.pem")
        self.assertEqual(missing.stderr.count(b"\n"), 1)
        with socket.create_server(("127.0.0.1", port)):
            taken = run(example("echo_server"), address, FILES["chain"], FILES["key"])
        self.expect(taken, 1, str(port).encode())
        self.assertEqual(taken.stderr.count(b"\n"), 1)
        self.expect(run(example("echo_server")), 2, b"usage")


class HttpsGet(Case):
    def get(self, port, *more, host="localhost"):
        return run(example("https_get"), host, str(port), "/", *(more or (FILES["ca"],)))

    def test_python(self):
        body = os.urandom(300000)
        with Http(body) as server:
            done = self.get(server.port)
        self.expect(done, 0, rb"^HTTP/1\.0 200 OK\r\n")
        self.same(done.stdout.partition(b"\r\n\r\n")[2], body)

    def test_address(self):
        """An IP address is verified as one."""
        with Http(b"by number") as server:
            done = self.get(server.port, host="127.0.0.1")
        self.expect(done, 0, b"by number$")

    def test_s_server(self):
        port, address = free_address()
        command = ["openssl", "s_server", "-accept", address, "-cert_chain", FILES["chain"],
                   "-cert", FILES["chain"], "-key", FILES["key"], "-www"]
        with started(*command, until=b"ACCEPT"):
            wait_for_port(port)
            self.expect(self.get(port), 0, rb"HTTP/1\.0 200 ok", rb"TLSv1\.3")

    def test_not_trusted(self):
        """Neither an unknown CA nor a wrong name gets a request."""
        with Http(b"secret", host="127.0.0.2") as server:
            unknown = run(example("https_get"), "127.0.0.2", server.port, "/")
            self.expect(unknown, 1, b"certificate")
            self.assertEqual(unknown.stderr.count(b"\n"), 1)
            self.expect(self.get(server.port, host="127.0.0.2"), 1, rb"127\.0\.0\.2")
            self.assertEqual(server.served, 0)

    def test_truncated(self):
        """An end without close_notify is an error, though bytes came."""
        def cut_off(tls):
            tls.recv(4096)
            tls.sendall(b"HTTP/1.0 200 OK\r\n\r\nhalf of i")
            socket.socket(fileno=tls.detach()).close()

        with tls_server(cut_off) as port:
            self.expect(self.get(port), 1, b"half of i", b"without close_notify")

    def test_unreachable(self):
        port, _ = free_address()
        done = self.get(port)
        self.expect(done, 1, str(port).encode())
        self.assertEqual(done.stderr.count(b"\n"), 1)


def wait_for_port(port):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"nothing listens on port {port}")


class Clients(Case):
    BODY = b"x" * 1000
    REPLY = len(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n") + 1000

    def test_blocking(self):
        with Http(self.BODY) as server:
            done = run(example("blocking_client"), "127.0.0.1", server.port, "3", FILES["ca"])
        self.expect(done, 0, b"^3 of 3 replies, %d bytes" % (3 * self.REPLY))

    def test_blocking_is_one_at_a_time(self):
        """The control for the next test: it gets no answer where two must ask together."""
        with Http(self.BODY, together=2) as server:
            with self.assertRaises(subprocess.TimeoutExpired):
                run(example("blocking_client"), "127.0.0.1", server.port, "2", FILES["ca"],
                    timeout=2)
            self.assertEqual(server.peak, 1)

    def test_async(self):
        """1,000 connections at once on one thread: nobody is answered before all have asked."""
        count, threads = 1000, []
        with Http(self.BODY, together=count) as server:
            client = subprocess.Popen(
                [example("async_client"), "127.0.0.1", server.port, str(count), FILES["ca"]],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

            def look():
                with open(f"/proc/{client.pid}/status", encoding="ascii") as status:
                    threads.append(int(re.search(r"Threads:\s+(\d+)", status.read()).group(1)))

            server.at_peak = look
            try:
                out, err = client.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                client.kill()
                self.fail(f"{server.peak} of {count} asked; {client.communicate()}")
            self.assertEqual(client.returncode, 0, err)
            self.assertIn(b"%d of %d replies, %d bytes" % (count, count, count * self.REPLY), out)
            self.assertEqual((server.peak, server.served), (count, count))
        self.assertEqual(threads, [1])

    def test_async_failure(self):
        """A certificate that is not trusted fails the requests, one by one."""
        with Http(self.BODY) as server:
            done = run(example("async_client"), "127.0.0.1", server.port, "3")
        self.expect(done, 1, b"0 of 3 replies", b"certificate verify failed")


class Readme(Case):
    def test_program(self):
        """The program of README.md, which wants port 443."""
        try:
            socket.create_server(("127.0.0.1", 443)).close()
        except OSError as problem:
            self.skipTest(f"port 443: {problem.strerror}")
        with Http(b"", host="127.0.0.1", port=443, together=2):
            done = run(example("ask"), "127.0.0.1", "localhost",
                       env={**os.environ, "SSL_CERT_FILE": FILES["ca"]})
        self.expect(done, 0)
        self.assertEqual(sorted(done.stdout.splitlines()),
                         [b"127.0.0.1: HTTP/1.0 200 OK", b"localhost: HTTP/1.0 200 OK"])


class UmTls(Case):
    """The program of this project as the peer."""

    def setUp(self):
        if not UM_TLS:
            self.skipTest("um-tls was not built")

    def serve(self, *options):
        """Starts a server; its port."""
        context = started(UM_TLS, "serve", "--listen", "127.0.0.1:0", "--cert", FILES["chain"],
                          "--key", FILES["key"], *options, until=b"listening on ")
        _, line = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return line.strip().rpartition(":")[2]

    def serve_files(self, **files):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, content in files.items():
            with open(os.path.join(folder.name, name.replace("_", ".")), "wb") as stream:
                stream.write(content)
        # Under a sanitizer on a busy machine 1,000 handshakes take longer than the usual 10 s.
        return self.serve("--root", folder.name, "--handshake-timeout", "100")

    def test_https_get(self):
        body = os.urandom(3000000)
        port = self.serve_files(file_bin=body)
        done = run(example("https_get"), "localhost", port, "/file.bin", FILES["ca"])
        self.expect(done, 0, rb"^HTTP/1\.[01] 200 ")
        self.same(done.stdout.partition(b"\r\n\r\n")[2], body)

    def test_clients(self):
        port = self.serve_files(index_html=b"<p>hello")
        for name, count in (("blocking_client", "10"), ("async_client", "1000")):
            done = run(example(name), "127.0.0.1", port, count, FILES["ca"])
            self.expect(done, 0, f"^{count} of {count} replies".encode())

    def test_duplex_chat(self):
        typed = os.urandom(1000000)
        done = run(example("duplex_chat"), "localhost", self.serve("--echo"), FILES["ca"],
                   stdin=typed)
        self.expect(done, 0)
        self.same(done.stdout, typed)

    def test_echo_server(self):
        port, address = free_address()
        with started(example("echo_server"), address, FILES["chain"], FILES["key"]):
            sent = os.urandom(1000000)
            done = run(UM_TLS, "connect", f"localhost:{port}", "--ca", FILES["ca"], stdin=sent)
        self.expect(done, 0)
        self.same(done.stdout, sent)


class DuplexChat(Case):
    def test_both_ways(self):
        """Hears while it waits for the keyboard, and goes on hearing after the input's end."""
        heard = []

        def converse(tls):
            tls.sendall(b"welcome\n")       # before anything was typed
            heard.append(tls.recv(100))
            tls.sendall(b"go on\n")
            self.assertEqual(tls.recv(100), b"")    # the half-close
            tls.sendall(b"goodbye\n")
            tls.unwrap()

        with tls_server(converse) as port:
            chat = subprocess.Popen([example("duplex_chat"), "localhost", str(port), FILES["ca"]],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.assertEqual(chat.stdout.readline(), b"welcome\n")
            chat.stdin.write(b"hello\n")
            chat.stdin.flush()
            self.assertEqual(chat.stdout.readline(), b"go on\n")
            rest, _ = chat.communicate(timeout=PATIENCE)    # ends its input
        self.assertEqual((heard, rest, chat.returncode), ([b"hello\n"], b"goodbye\n", 0))

    def test_peer_ends(self):
        """The peer's end ends the program while it still waits for the keyboard."""
        with tls_server(lambda tls: tls.unwrap()) as port:
            chat = subprocess.Popen([example("duplex_chat"), "localhost", str(port), FILES["ca"]],
                                    stdin=subprocess.PIPE)
            self.assertEqual(chat.wait(PATIENCE), 0)
            chat.stdin.close()


def drive(plain, incoming, outgoing, step):
    """A step of a TLS object in memory, with its ciphertext on a socket."""
    while True:
        try:
            result = step()
            plain.sendall(outgoing.read())
            return result
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            data = plain.recv(65536)
            if not data:
                raise AssertionError("the peer hung up") from None
            incoming.write(data)


class Starttls(Case):
    def setUp(self):
        self.port, address = free_address()
        context = started(example("starttls"), "serve", address, FILES["chain"], FILES["key"])
        context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    def greet(self, *lines):
        """A plain connection that has read the greeting and sent lines."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self.addCleanup(plain.close)
        self.assertEqual(plain.recv(100), b"220 ready\r\n")
        plain.sendall(b"".join(lines))
        return plain

    def test_own_client(self):
        done = run(example("starttls"), "localhost", str(self.port), FILES["ca"])
        self.expect(done, 0)
        self.assertEqual(done.stdout.decode().splitlines(), [
            "plain: 220 ready", "plain: 250 in plain text", "plain: 220 go ahead",
            "TLSv1.3: 250 under TLS", "plain: 250 plain text again", "plain: 221 bye"])

    def test_client_refuses_unknown(self):
        done = run(example("starttls"), "localhost", str(self.port))
        self.expect(done, 1, b"certificate")
        self.assertNotIn(b"under TLS", done.stdout)

    def test_python(self):
        plain = self.greet(b"STARTTLS\r\n")
        self.assertEqual(plain.recv(100), b"220 go ahead\r\n")
        tls = client_context().wrap_socket(plain, server_hostname="localhost")
        self.addCleanup(tls.close)
        tls.sendall(b"NOOP\r\n")
        self.assertEqual(tls.recv(100), b"250 under TLS\r\n")
        plain = tls.unwrap()
        self.addCleanup(plain.close)
        self.assertEqual(plain.recv(100), b"250 plain text again\r\n")
        plain.sendall(b"QUIT\r\n")
        self.assertEqual(plain.recv(100), b"221 bye\r\n")
        self.assertEqual(plain.recv(100), b"")

    def test_client_hello_in_the_same_packet(self):
        """Bytes of the handshake that were read with the command are not lost."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with self.assertRaises(ssl.SSLWantReadError):
            tls.do_handshake()
        plain = self.greet(b"STARTTLS\r\n" + outgoing.read())
        received = plain.recv(14, socket.MSG_WAITALL)
        self.assertEqual(received, b"220 go ahead\r\n")
        drive(plain, incoming, outgoing, tls.do_handshake)
        tls.write(b"NOOP\r\n")
        answer = drive(plain, incoming, outgoing, lambda: tls.read(100))
        self.assertEqual(answer, b"250 under TLS\r\n")

    def test_plain_text_in_the_same_packet(self):
        """Nor are those that the client read with the server's close_notify."""
        heard = []

        def serve(listener):
            plain, _ = listener.accept()
            with plain, plain.makefile("rb") as lines:
                plain.settimeout(PATIENCE)
                for answer in (b"220 ready\r\n", b"250 in plain text\r\n", b"220 go ahead\r\n"):
                    plain.sendall(answer)
                    heard.append(lines.readline() if len(heard) < 2 else b"")
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = server_context().wrap_bio(incoming, outgoing, server_side=True)
                drive(plain, incoming, outgoing, tls.do_handshake)
                heard.append(drive(plain, incoming, outgoing, lambda: tls.read(100)))
                tls.write(b"250 under TLS\r\n")
                try:
                    drive(plain, incoming, outgoing, lambda: tls.read(100))
                except ssl.SSLZeroReturnError:
                    pass
                with contextlib.suppress(ssl.SSLError):
                    tls.unwrap()
                plain.sendall(outgoing.read() + b"250 plain text again\r\n")
                heard.append(plain.recv(100))
                plain.sendall(b"221 bye\r\n")

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(PATIENCE)
            thread = threading.Thread(target=serve, args=(listener,))
            thread.start()
            done = run(example("starttls"), "localhost", str(listener.getsockname()[1]),
                       FILES["ca"])
            thread.join()
        self.expect(done, 0, b"plain: 250 plain text again", b"plain: 221 bye")
        self.assertEqual(heard, [b"NOOP\r\n", b"STARTTLS\r\n", b"", b"NOOP\r\n", b"QUIT\r\n"])

    def test_commands_cannot_be_slipped_in(self):
        """Plain text behind STARTTLS is not taken for something said under TLS."""
        plain = self.greet(b"STARTTLS\r\nNOOP\r\n")
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := plain.recv(4096):
                said += piece
        self.assertTrue(said.startswith(b"220 go ahead\r\n"))
        self.assertNotIn(b"250", said)

    def test_s_client(self):
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-starttls", "smtp",
             "-CAfile", FILES["ca"], "-verify_return_error", "-quiet", "-crlf"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        client.stdin.write(b"NOOP\nQUIT\n")
        out, _ = client.communicate(timeout=PATIENCE)
        self.assertIn(b"250 under TLS", out)
        self.assertIn(b"221 bye", out)


# ---- running ----

class Tap(unittest.TestResult):
    """A line for each test as it ends: TAP on stdout, the reasons on stderr."""

    def line(self, word, test, note=""):
        print(f"{word} {self.testsRun} - {test.id().partition('.')[2]}{note}", flush=True)

    def addSuccess(self, test):
        self.line("ok", test)

    def addSkip(self, test, reason):
        self.line("ok", test, f" # SKIP {reason}")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.line("not ok", test)
        print(self.failures[-1][1], file=sys.stderr)

    def addError(self, test, error):
        super().addError(test, error)
        self.line("not ok", test)
        print(self.errors[-1][1], file=sys.stderr)


def run_tests(names):
    module = sys.modules["__main__"]
    loader = unittest.defaultTestLoader
    suite = loader.loadTestsFromNames(names, module) if names else \
        loader.loadTestsFromModule(module)
    print(f"1..{suite.countTestCases()}")
    return 0 if suite.run(Tap()).wasSuccessful() else 1


def make_certificates(directory):
    script = os.path.join(SOURCE, "..", "certs", "make.sh")
    subprocess.run([script, directory], check=True)


def main():
    global BUILT, SOURCE, UM_TLS
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folders", nargs=2)
    parser.add_argument("--um-tls", default="")
    parser.add_argument("tests", nargs="*")
    arguments = parser.parse_args()
    BUILT, SOURCE = map(os.path.abspath, arguments.folders)
    UM_TLS = arguments.um_tls and os.path.abspath(arguments.um_tls)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 8192), limit))
    with tempfile.TemporaryDirectory() as directory:
        directory = os.path.join(directory, "certs")
        make_certificates(directory)
        for name, file in (("ca", "ca.pem"), ("chain", "server.pem"), ("key", "server.key")):
            FILES[name] = os.path.join(directory, file)
        return run_tests(arguments.tests)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""um-tls serve among clients that mean no good, while a well-behaved one keeps working; and how
it ends: SIGTERM once, and twice."""

import contextlib
import hashlib
import os
import random
import signal
import socket
import ssl
import struct
import tempfile
import threading
import time

from harness import (PATIENCE, Case, MemoryClient, Server, client_context, client_hello, cut_off,
                     exchange, main, make_root, receive, receive_all, reset, tcp, tls, wait_until)

PLAIN = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"


def response(connection):
    """Status and body of one response."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += receive(connection, 1)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), receive(connection, length)


def ended(plain):
    """How the peer ended a TCP connection: "FIN" or "RST"; whatever it still sent is dropped."""
    try:
        receive_all(plain)
    except ConnectionResetError:
        return "RST"
    return "FIN"


class GoodClient:
    """Asks for the same file on one connection, again and again, in a thread of its own."""

    def __init__(self, port):
        self.connection = tls(port)
        self.answers, self.trouble, self.stopped = 0, None, False
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        try:
            while not self.stopped:
                self.connection.sendall(PLAIN % b"hello.txt")
                if response(self.connection) != (200, b"hello\n"):
                    raise AssertionError("another answer than the file")
                self.answers += 1
                time.sleep(0.002)
        except Exception as problem:  # told to the test
            self.trouble = problem

    def still_served(self):
        """Answered after now, on the same connection as ever."""
        before = self.answers
        wait_until(lambda: self.answers > before or self.trouble, "the good client is answered")
        if self.trouble:
            raise AssertionError(f"the good client after {self.answers} answers: {self.trouble!r}")

    def stop(self):
        self.stopped = True
        self.thread.join(PATIENCE)
        self.connection.close()


class Hostile(Case):
    @classmethod
    def setUpClass(cls):
        cls.place = tempfile.TemporaryDirectory(prefix="interop.")
        cls.big = make_root(cls.place.name)
        cls.server = Server("--root", os.path.join(cls.place.name, "root"), "--handshake-timeout",
                            "0.5", "--idle-timeout", "2", "--verbose")
        cls.good = GoodClient(cls.server.port)
        cls.good.still_served()
        cls.descriptors = cls.server.descriptors()

    @classmethod
    def tearDownClass(cls):
        cls.good.stop()
        code = cls.server.stop()
        cls.place.cleanup()
        if code:
            raise AssertionError(f"the server ended with {code}")

    def tearDown(self):
        """After each attack: nobody else noticed, and nothing of it is left."""
        self.good.still_served()
        wait_until(lambda: self.server.descriptors() <= self.descriptors,
                   "the server has closed the connections of the attack")

    def port(self):
        return self.server.port

    # ---- before TLS is there ----

    def test_garbage(self):
        noise = random.Random(3)
        for size in (1, 5, 100, 5000, 100000):
            with tcp(self.port()) as plain, contextlib.suppress(ConnectionError):
                plain.sendall(noise.randbytes(size))
                ended(plain)

    def test_garbage_records(self):
        """Well-formed record headers around nonsense, of every type and length. The server may
        reset the connection before all of it was sent."""
        noise = random.Random(4)
        for kind in (0, 20, 21, 22, 23, 24, 255):
            for length in (0, 1, 100, 16384, 16640, 65535):
                with tcp(self.port()) as plain, contextlib.suppress(OSError):
                    plain.sendall(struct.pack(">BHH", kind, 0x0303, length) +
                                  noise.randbytes(min(length, 17000)))
                    plain.shutdown(socket.SHUT_WR)
                    ended(plain)

    def test_plain_http(self):
        """The log says what came; on a server of its own, since logs are rationed."""
        server = self.serve("--echo")
        with tcp(server.port) as plain:
            plain.sendall(PLAIN % b"hello.txt")
            with contextlib.suppress(ConnectionResetError):
                self.assertNotIn(b"hello\n", receive_all(plain))
        server.wait_for(b"plain HTTP", "err")
        self.echoes(server.port)

    def test_half_a_hello(self):
        """And then silence: the handshake's deadline ends it."""
        hello = client_hello()
        for part in (0, 1, 5, len(hello) // 2, len(hello) - 1, len(hello)):
            with self.subTest(bytes=part), tcp(self.port()) as plain:
                plain.sendall(hello[:part])
                self.assertIn(ended(plain), ("FIN", "RST"))

    def test_hello_drips(self):
        """A byte now and then does not extend the deadline."""
        with tcp(self.port()) as plain, contextlib.suppress(ConnectionError):
            for byte in client_hello():
                plain.sendall(bytes([byte]))
                time.sleep(0.02)
            self.fail("the handshake was not ended")

    def test_half_close_in_handshake(self):
        hello = client_hello()
        for part in (0, 5, len(hello) // 2, len(hello)):
            with self.subTest(bytes=part), tcp(self.port()) as plain:
                plain.sendall(hello[:part])
                plain.shutdown(socket.SHUT_WR)
                self.assertIn(ended(plain), ("FIN", "RST"))

    def test_resets_in_handshake(self):
        hello = client_hello()
        for part in (0, 5, len(hello) // 2, len(hello)):
            for _ in range(20):
                plain = tcp(self.port())
                plain.sendall(hello[:part])
                reset(plain)

    # ---- with TLS ----

    def test_cut_off(self):
        for _ in range(20):
            cut_off(tls(self.port()))

    def test_resets_in_transfer(self):
        for _ in range(10):
            connection = tls(self.port())
            connection.sendall(PLAIN % b"big.bin")
            receive(connection, 10000)
            reset(connection)

    def test_half_close(self):
        """close_notify after the request: the whole answer comes, then the server's own."""
        with tcp(self.port()) as plain:
            client, body = MemoryClient(plain, client_context()), b""
            client.step(client.tls.do_handshake)
            client.tls.write(PLAIN % b"big.bin")
            with contextlib.suppress(ssl.SSLError):
                client.tls.unwrap()
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while piece := client.step(client.tls.read, 65536):
                    body += piece
            self.same(body.partition(b"\r\n\r\n")[2], self.big)

    def test_flipped_byte(self):
        """A record that was changed on the way is answered with an alert."""
        with tcp(self.port()) as plain:
            client = MemoryClient(plain, client_context())
            client.step(client.tls.do_handshake)
            plain.sendall(client.outgoing.read())
            client.tls.write(PLAIN % b"hello.txt")
            record = bytearray(client.outgoing.read())
            record[20] ^= 1
            plain.sendall(record)
            with self.assertRaisesRegex(ssl.SSLError, "(?i)alert bad record mac"):
                client.step(client.tls.read, 100)

    def test_slow_reader(self):
        """Takes a little at a time; it gets everything."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(PATIENCE)
        plain.connect(("127.0.0.1", self.port()))
        with client_context().wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(PLAIN % b"big.bin")
            for _ in range(30):
                receive(connection, 100)
                time.sleep(0.02)
            self.good.still_served()
            self.assertTrue(receive_all_but_keep(connection, self.big), "not the whole file")

    def test_never_reads(self):
        """Asks and takes nothing: given up after --idle-timeout."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(PATIENCE)
        plain.connect(("127.0.0.1", self.port()))
        with client_context().wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall((PLAIN % b"big.bin") * 50)
            wait_until(lambda: self.server.descriptors() <= self.descriptors, "given up")

    # ---- with HTTP ----

    def request(self, raw):
        """The status that raw bytes are answered with."""
        with tls(self.port()) as connection:
            connection.sendall(raw)
            return response(connection)

    def test_path_traversal(self):
        for path in ("../secret.txt", "%2e%2e/secret.txt", "%2E%2E%2fsecret.txt", "sub/../../secret.txt",
                     "..%2fsecret.txt", ".%2e/secret.txt", "out.txt", "slash/etc/passwd",
                     "sub/up/secret.txt", "/../secret.txt", "//secret.txt", "/etc/passwd",
                     "sub/%2e%2e/%2e%2e/secret.txt", "....//secret.txt", "..\\secret.txt",
                     "..%5csecret.txt", "%252e%252e/secret.txt", "hello.txt/../../secret.txt"):
            with self.subTest(path=path):
                status, body = self.request(PLAIN % path.encode())
                self.assertIn(status, (400, 403, 404), body)
                self.assertNotIn(b"secret\n", body)
        absolute = os.path.join(self.place.name, "secret.txt").encode()
        for target in (absolute, b"https://localhost" + absolute, b"file://" + absolute, b"*"):
            with self.subTest(target=target):
                status, _ = self.request(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
                self.assertIn(status, (400, 403, 404))
        self.assertEqual(self.request(PLAIN % b"inside.txt"), (200, b"hello\n"))  # a link that may

    def test_bad_requests(self):
        for raw in (b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                    b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"):
            with self.subTest(raw=raw):
                self.assertIn(self.request(raw)[0], (400, 501, 505))

    def test_oversized_head(self):
        for raw in (b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40000 + b"\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 8000 + b"\r\n"):
            self.assertIn(self.request(raw)[0], (414, 431))

    def test_head_drips(self):
        """A header that never ends, slowly: answered with 408, or just ended, by --idle-timeout."""
        answer, end = b"", time.monotonic() + PATIENCE
        with tls(self.port()) as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            connection.settimeout(0.1)
            while not answer:
                self.assertLess(time.monotonic(), end, "a header was read for ever")
                connection.sendall(b"X: y\r\n")
                with contextlib.suppress(TimeoutError):
                    answer = connection.recv(1000) or b"ended"
        self.assertTrue(answer in (b"", b"ended") or answer.startswith(b"HTTP/1.1 408 "), answer)

    def test_idle(self):
        """Nothing is asked for: closed with close_notify."""
        with tls(self.port()) as connection:
            self.assertEqual(receive_all(connection), b"")


def receive_all_but_keep(connection, body):
    """The rest of a response whose body is this one, on a connection that stays."""
    tail, expected = b"", body[-4096:]
    while not tail.endswith(expected):
        piece = connection.recv(65536)
        if not piece:
            return False
        tail = (tail + piece)[-8192:]
    return True


class Ending(Case):
    def setUp(self):
        self.place = self.folder()
        # More than the sockets of both ends take: their limits go up to 32 MiB and more.
        self.big = os.urandom(1024 * 1024) * 128
        with open(os.path.join(self.place, "big.bin"), "wb") as file:
            file.write(self.big)

    def download(self, server):
        """A connection in the middle of a download, and the hash of what came."""
        connection = tls(server.port)
        self.addCleanup(connection.close)
        connection.sendall(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += receive(connection, 1)
        return connection, hashlib.sha256(receive(connection, 100000))

    def refuses(self, server):
        try:
            tcp(server.port).close()
            return False
        except OSError:
            return True

    def test_sigterm_drains(self):
        for options in ((), ("--threads", "2")):
            server = self.serve("--root", self.place, *options)
            connection, sum_ = self.download(server)
            idle = tls(server.port)
            # Answered once: the server has seen the end of the handshake, as we have.
            idle.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += receive(idle, 1)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(receive_all(idle), b"")  # close_notify
            idle.close()
            wait_until(lambda: self.refuses(server), "connections are refused")
            successor = self.serve("--echo", *options, listen=f"127.0.0.1:{server.port}")
            self.echoes(successor.port)
            successor.stop()
            self.assertIsNone(server.process.poll())
            sum_.update(receive_all(connection))
            self.assertEqual(sum_.hexdigest(), hashlib.sha256(self.big).hexdigest())
            self.assertEqual(server.wait(), 0)
            self.assertTrue(self.refuses(server))

    def test_second_sigterm(self):
        server = self.serve("--root", self.place)
        connection, _ = self.download(server)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: self.refuses(server), "connections are refused")
        self.assertIsNone(server.process.poll(), "did not wait for the download")
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.wait(), 0)
        self.assertIn(b"second signal", server.said("err"))
        with self.assertRaises((ssl.SSLError, OSError)):
            receive_all(connection)

    def test_sigint(self):
        server = self.serve("--echo")
        with tls(server.port) as connection:
            self.assertEqual(exchange(connection, b"x"), b"x")
            server.process.send_signal(signal.SIGINT)
            self.assertEqual(receive_all(connection), b"")
        self.assertEqual(server.wait(), 0)

    def test_drain_timeout(self):
        """A download that nobody reads is cut when the time to drain is over."""
        server = self.serve("--root", self.place, "--drain-timeout", "0.5")
        self.download(server)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.wait(), 0)
        self.assertIn(b"0.5 seconds", server.said("err"))

    def test_signals_while_busy(self):
        """Clients in every state of a connection when the signal comes; the server ends."""
        server = self.serve("--root", self.place, "--drain-timeout", "1", "--threads", "2")
        with contextlib.ExitStack() as stack:
            hello = client_hello()
            for count in range(40):
                plain = stack.enter_context(tcp(server.port))
                plain.sendall(hello[:len(hello) * count // 39])
            for _ in range(20):
                stack.enter_context(tls(server.port))
            for _ in range(5):
                self.download(server)
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    main()

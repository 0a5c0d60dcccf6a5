#!/usr/bin/env python3
"""Limits that hold: what one peer, one address or all together may have of um-tls serve.

    UM_INTEROP_HALF_OPEN=2000    connections that never finish their ClientHello
"""

import contextlib
import os
import re
import select
import socket
import ssl
import struct
import time

from harness import (PATIENCE, SANITIZED, Case, cert, client_context, client_hello, main,
                     note, number, receive, receive_all, run, tcp, tls, wait_until)

SOON = 20   # seconds in which something that has a deadline of one second happens, on a busy machine
SLOW_RATE = 200 * 1024   # of a reader that is too slow, bytes a second


def ended(plain):
    """Waits for the end that the server makes of a connection; what came before it."""
    data = bytearray()
    plain.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionError):
        while piece := plain.recv(65536):
            data += piece
    return bytes(data)


def is_open(plain):
    """Nothing came, not even an end."""
    plain.setblocking(False)
    try:
        plain.recv(1)
        return False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        plain.settimeout(PATIENCE)


def counter(metrics, name):
    """The sum over all reactors, from a scrape."""
    with socket.create_connection(("127.0.0.1", metrics), timeout=PATIENCE) as plain:
        plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = receive_all(plain).decode()
    values = re.findall(rf"^bio_uring_{name}{{[^}}]*}} (\d+)$", text, re.M)
    if not values:
        raise AssertionError(f"no bio_uring_{name} among the metrics")
    return sum(map(int, values))


class Limited(Case):
    def limited(self, *options, **more):
        """A server, and its metrics' port."""
        server = self.serve("--metrics", "127.0.0.1:0", *options, **more)
        metrics = int(server.wait_for(rb"metrics on http://\S+:(\d+)/", "err").group(1))
        return server, metrics

    def connect(self, port, source=None):
        """Plain TCP, closed at the test's end."""
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE,
                                         source_address=source and (source, 0))
        self.addCleanup(plain.close)
        return plain

    def shake(self, plain):
        """TLS on it."""
        secure = client_context().wrap_socket(plain, server_hostname="localhost")
        self.addCleanup(secure.close)
        return secure


class HalfOpen(Limited):
    """What a peer costs that has not finished its first message."""

    def open_all(self, server, metrics, count, send):
        """So many connections that sent their part, accepted and settled."""
        opened = []
        for _ in range(count):
            plain = self.connect(server.port)
            opened.append(plain)
            send(plain)
        wait_until(lambda: counter(metrics, "tls_open") == count, "all are accepted")
        self.served(server)   # what they sent is there, too
        return opened

    def served(self, server):
        """As echoes(), without select(2), which knows only 1,024 descriptors."""
        with tls(server.port) as secure:
            secure.sendall(b"here")
            self.assertEqual(receive(secure, 4), b"here")
            secure.unwrap()

    def half_open(self, send, most, what):
        """At most so many KiB for each, and all of it given back: a second time takes no more."""
        count = number("UM_INTEROP_HALF_OPEN", 200 if SANITIZED else 2000)
        server, metrics = self.limited("--echo", "--handshake-timeout", 300)
        self.echoes(server.port, size=8 << 20)   # what is made once is not a connection's
        before = server.resident()
        seen = []
        for _ in range(3):
            opened = self.open_all(server, metrics, count, send)
            seen.append(server.resident() - before)
            for plain in opened:
                plain.close()
            wait_until(lambda: counter(metrics, "tls_open") == 0, "all are closed")
        note(f"{count} connections, {what}: {seen[0] / count:.2f} KiB of RSS each; "
             f"{(server.resident() - before) / count:.2f} when they had gone")
        if SANITIZED:
            return   # memory there is the sanitizer's
        self.assertLessEqual(seen[0] / count, most, what)
        self.assertLessEqual(seen[2], 1.25 * seen[0] + 1024, "the third time takes what the others gave back")

    def test_silent(self):
        self.half_open(lambda plain: None, 4, "silent")

    def test_half_a_hello(self):
        hello = client_hello()
        self.half_open(lambda plain: plain.sendall(hello[:-1]), 12,
                       f"all but the last byte of a ClientHello of {len(hello)}")

    def test_a_hello_as_long_as_can_be(self):
        """Claims 7,700 bytes and sends all but one, in records of 100."""
        body = b"\1" + struct.pack(">I", 7700)[1:] + bytes(7700)
        pieces = [body[i:i + 100] for i in range(0, len(body), 100)]
        wire = b"".join(struct.pack(">BHH", 22, 0x301, len(piece)) + piece for piece in pieces)[:-1]
        self.half_open(lambda plain: plain.sendall(wire), 12, "a ClientHello of 7,700 bytes but one")

    def test_byte_by_byte(self):
        """Each byte in a segment, and in a tick, of its own; then it is complete and works."""
        server, _ = self.limited("--echo")
        plain = self.connect(server.port)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")

        def step(call, *arguments):
            while True:
                try:
                    return call(*arguments)
                except ssl.SSLWantReadError:
                    for byte in outgoing.read():
                        plain.sendall(bytes([byte]))
                    incoming.write(plain.recv(65536))
        step(secure.do_handshake)
        secure.write(b"every byte")
        plain.sendall(outgoing.read())
        self.assertEqual(step(secure.read, 100), b"every byte")

    def test_a_hello_in_many_records(self):
        """One byte of the message in each record is allowed, and slow; it works."""
        hello = client_hello()
        server, _ = self.limited("--echo")
        plain = self.connect(server.port)
        plain.sendall(b"".join(struct.pack(">BHH", 22, 0x301, 1) + hello[i:i + 1]
                               for i in range(5, len(hello))))
        self.assertEqual(receive(plain, 1), b"\x16", "a ServerHello")

    def test_proxy_header(self):
        """Of HAProxy's protocol, versions 1 and 2: is not known, so it is no TLS."""
        server, metrics = self.limited("--echo")
        v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12)
        for header in (b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n", v2):
            plain = self.connect(server.port)
            plain.sendall(header + client_hello())
            self.assertNotIn(b"\x16", ended(plain)[:1])
        wait_until(lambda: counter(metrics, "tls_failed_total") == 2, "both are counted")

    def test_too_long(self):
        server, metrics = self.limited("--echo", "--verbose")
        for wire in (struct.pack(">BHH", 22, 0x301, 4) + b"\1\0\x20\1",    # says 8,193
                     struct.pack(">BHH", 22, 0x301, 1) * 9000):            # never gets anywhere
            plain = self.connect(server.port)
            with contextlib.suppress(ConnectionError):
                plain.sendall(wire)
            ended(plain)
        wait_until(lambda: counter(metrics, "tls_failed_total") == 2, "both are counted")
        self.assertGreaterEqual(counter(metrics, "tls_too_much_total"), 1)
        self.echoes(server.port)

    def test_other_records_first(self):
        """What OpenSSL would wait for with all its buffers: an alert, data, the SSLv2 hello."""
        server, metrics = self.limited("--echo", "--handshake-timeout", 300)
        wires = [struct.pack(">BHH", kind, 0x303, 16000) for kind in (20, 21, 23, 24)] + [b"\x80\x2e\1"]
        for wire in wires:
            plain = self.connect(server.port)
            plain.sendall(wire)
            ended(plain)
        wait_until(lambda: counter(metrics, "tls_failed_total") == len(wires), "all have failed")
        self.echoes(server.port)


class Handshake(Limited):
    def test_too_many_bytes(self):
        """A client's certificate is part of its handshake; with it, there is more than 512 bytes."""
        server, metrics = self.limited("--echo", "--handshake-bytes", "512", "--client-ca",
                                       cert("client-ca.pem"))
        context = client_context("1.2", certificate="client")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        plain = self.connect(server.port)
        with contextlib.suppress(ssl.SSLWantReadError):
            secure.do_handshake()
        plain.sendall(outgoing.read())
        while True:
            incoming.write(plain.recv(65536))
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                reply = outgoing.read()
                if reply:
                    break
        with contextlib.suppress(ConnectionError):
            plain.sendall(reply[:-40])   # all but its Finished, so that it could not be done
        ended(plain)
        self.assertEqual(counter(metrics, "tls_too_much_total"), 1)

    def test_deadline(self):
        server, metrics = self.limited("--echo", "--handshake-timeout", "0.3")
        hello = client_hello()
        for wire in (b"", hello[:100], hello):   # nothing, half, and no answer to the server's
            plain = self.connect(server.port)
            plain.sendall(wire)
            ended(plain)
        wait_until(lambda: counter(metrics, "tls_timed_out_total") == 3, "each is counted")


class Connections(Limited):
    def test_cap_and_below(self):
        """At the cap nobody is accepted, and nobody is turned away either; below it goes on."""
        server, metrics = self.limited("--echo", "--max-connections", 5)
        held = [self.shake(self.connect(server.port)) for _ in range(5)]
        before = server.descriptors()
        waiting = [self.connect(server.port) for _ in range(300)]  # the kernel's queue takes them
        for secure in held:
            secure.sendall(b"still")
            self.assertEqual(receive(secure, 5), b"still")
        self.assertEqual(counter(metrics, "tls_open"), 5)
        self.assertGreaterEqual(counter(metrics, "tls_pauses_total"), 1)
        self.assertTrue(all(map(is_open, waiting)))
        for secure in held:
            secure.close()
        for plain in waiting:
            secure = self.shake(plain)
            secure.sendall(b"at last")
            self.assertEqual(receive(secure, 7), b"at last")
            self.assertLessEqual(server.descriptors(), before + 1, "no more are accepted than fit")
            secure.close()
        wait_until(lambda: counter(metrics, "tls_open") == 0, "all have gone")
        self.assertEqual(counter(metrics, "tls_accepted_total"), 305)

    def test_address(self):
        server, metrics = self.limited("--echo", "--max-per-address", 3)
        held = [self.connect(server.port) for _ in range(3)]
        wait_until(lambda: counter(metrics, "tls_open") == 3, "three are served")
        self.assertEqual(ended(self.connect(server.port)), b"", "the fourth is closed")
        other = self.shake(self.connect(server.port, source="127.0.0.2"))
        other.sendall(b"me too")
        self.assertEqual(receive(other, 6), b"me too")
        self.assertEqual(counter(metrics, "tls_refused_total"), 1)
        held[0].close()
        wait_until(lambda: counter(metrics, "tls_open") == 3, "one has gone")
        self.echoes(server.port)

    def test_many_addresses(self):
        """More than the table begins with, coming and going."""
        server, metrics = self.limited("--echo", "--max-per-address", 1)
        for _ in range(3):
            held = [self.connect(server.port, source=f"127.0.{i // 200 + 1}.{i % 200 + 1}") for i in range(300)]
            wait_until(lambda: counter(metrics, "tls_open") == 300, "all are served")
            for plain in held:
                plain.close()
            wait_until(lambda: counter(metrics, "tls_open") == 0, "all have gone")
        self.assertEqual(counter(metrics, "tls_refused_total"), 0)

    def test_ipv6(self):
        try:
            server, metrics = self.limited("--echo", "--max-per-address", 1, listen="[::1]:0")
        except AssertionError:
            self.skipTest("no IPv6 here")
        with socket.create_connection(("::1", server.port), timeout=PATIENCE):
            wait_until(lambda: counter(metrics, "tls_open") == 1, "one is served")
            with socket.create_connection(("::1", server.port), timeout=PATIENCE) as plain:
                self.assertEqual(ended(plain), b"")
        self.assertEqual(counter(metrics, "tls_refused_total"), 1)


class Time(Limited):
    """Whole requests and whole responses have a time, however busy their peer looks."""

    def files(self, size):
        folder = self.folder()
        with open(os.path.join(folder, "big.bin"), "wb") as file:
            file.truncate(size)
        return folder

    def drip(self, secure, data, pause):
        """A byte at a time, until the server has enough of it: how many went."""
        for i, byte in enumerate(data):
            try:
                secure.sendall(bytes([byte]))
            except (OSError, ssl.SSLError):
                return i
            if select.select([secure], [], [], pause)[0]:
                return i
        return len(data)

    def test_dripping_head(self):
        server, metrics = self.limited("--body", 10, "--request-timeout", 1)
        secure = self.shake(self.connect(server.port))
        started = time.monotonic()
        self.drip(secure, b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * 5000, 0.02)
        self.assertIn(b"408", receive_all(secure))
        self.assertLess(time.monotonic() - started, SOON)
        secure.close()
        wait_until(lambda: counter(metrics, "tls_too_slow_total") == 1, "it was counted")

    def test_dripping_body(self):
        server, metrics = self.limited("--body", 10, "--request-timeout", 1)
        secure = self.shake(self.connect(server.port))
        secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")
        went = self.drip(secure, b"x" * 5000, 0.02)
        self.assertLess(went, 5000)
        wait_until(lambda: counter(metrics, "tls_open") == 0, "it has ended")
        self.assertEqual(counter(metrics, "tls_too_slow_total"), 1)

    def test_slow_reader(self):
        """Always takes something, never enough: the whole has a deadline. A reader that keeps
        the rate gets it all from the same server, though it takes longer than the deadline."""
        size = 30 * 1024 * 1024
        server, metrics = self.limited("--root", self.files(size), "--idle-timeout", 1, "--min-rate", "8M")
        secure = self.shake(self.connect(server.port))
        secure.sendall(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got, started = 0, time.monotonic()
        with contextlib.suppress(OSError, ssl.SSLError):
            while piece := secure.recv(int(SLOW_RATE / 50)):
                got += len(piece)
                time.sleep(0.02)
                if time.monotonic() - started > 3 * SOON:
                    break
        self.assertLess(got, size)
        wait_until(lambda: counter(metrics, "tls_too_slow_total") == 1, "it was counted")
        with tls(server.port) as good:
            good.sendall(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            self.assertGreater(len(receive_all(good)), size)

    def test_never_reads(self):
        server, metrics = self.limited("--root", self.files(100 * 1024 * 1024), "--idle-timeout", 1,
                                       "--min-rate", "100M")
        secure = []
        for _ in range(20):  # asking at once, or a busy machine's first are idle before the last shake
            secure.append(self.shake(self.connect(server.port)))
            secure[-1].sendall(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: counter(metrics, "tls_open") == 0, "all were cut")
        self.assertEqual(counter(metrics, "tls_too_slow_total"), 20)
        self.assertEqual(counter(metrics, "reactor_send_held"), 0)

    def test_idle(self):
        server, metrics = self.limited("--body", 10, "--idle-timeout", "0.3")
        secure = self.shake(self.connect(server.port))
        self.assertEqual(secure.recv(1), b"", "close_notify")
        self.assertEqual(counter(metrics, "tls_timed_out_total"), 1)


class Totals(Limited):
    """What all connections of a reactor may have queued together."""

    def test_sending(self):
        """Readers who never read get less each, and a good one its whole answer."""
        count, body = 40, 4 * 1024 * 1024
        server, metrics = self.limited("--body", body, "--send-total", "1M")
        lazy = [self.shake(self.connect(server.port)) for _ in range(count)]
        for secure in lazy:
            secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: counter(metrics, "reactor_squeezed_total") > 0, "the total was reached")
        held = counter(metrics, "reactor_send_held")
        note(f"{count} readers that never read: send buffers of {held // 1024} KiB held, total 1 MiB")
        self.assertLessEqual(held, (1 << 20) + (272 << 10) + count * (36 << 10))
        with tls(server.port) as good:
            good.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            self.assertGreater(len(receive_all(good)), body)
        for secure in lazy:
            secure.close()
        wait_until(lambda: counter(metrics, "reactor_send_held") == 0, "nothing is held")

    def test_one_connection(self):
        """Who sends and never reads fills what is his, which is counted, and is held back."""
        server, metrics = self.limited("--echo")
        names = ("reactor_send_waits_total", "reactor_receive_pauses_total")
        self.assertEqual([counter(metrics, name) for name in names], [0, 0])
        secure = self.shake(self.connect(server.port))
        secure.setblocking(False)

        def waits():
            with contextlib.suppress(ssl.SSLWantWriteError):
                while True:
                    secure.send(bytes(65536))
            return all(counter(metrics, name) for name in names)
        wait_until(waits, "its echo waits, and then what it sends")
        self.assertLessEqual(counter(metrics, "reactor_send_held"), 1 << 20)
        self.echoes(server.port)

    def test_tricklers(self):
        """Four hundred connections with a few unread bytes each hold no shared buffer: there are
        256 of those. Half of them are in the middle of a ClientHello, half in that of a record."""
        server, metrics = self.limited("--echo")
        hello = client_hello()
        record = struct.pack(">BHH", 23, 0x303, 1000) + b"half of a record"
        held = []
        for _ in range(300):
            self.connect(server.port).sendall(hello[:-1])
        for _ in range(100):
            secure = self.shake(self.connect(server.port))
            held.append(secure)
            plain = socket.socket(fileno=os.dup(secure.fileno()))
            self.addCleanup(plain.close)
            plain.sendall(record)
        wait_until(lambda: counter(metrics, "tls_parked") == 400, "all are parked")
        self.assertEqual(counter(metrics, "reactor_buffers_used"), 0)
        self.echoes(server.port, size=1000000)


class Floods(Limited):
    """Records without data. What a turn of them costs, and --max-floods, is in tests/tls."""

    def test_renegotiation(self):
        """TLS 1.2: refused, and the connection goes on or ends, but serves no second handshake."""
        server, metrics = self.limited("--echo", "--min-tls", "1.2")
        done = run(self.need("openssl"), "s_client", "-connect", server.address, "-CAfile",
                   cert("ca.pem"), "-tls1_2", stdin=b"R\n" * 3)
        self.assertIn(b"no renegotiation", done.err + done.out, done)
        self.assertEqual(counter(metrics, "tls_handshakes_total"), 1)
        self.echoes(server.port)

    def test_key_updates(self):
        """However many: the peer stays connected, and gets its answers."""
        server, metrics = self.limited("--echo")
        done = run(self.need("openssl"), "s_client", "-connect", server.address, "-CAfile",
                   cert("ca.pem"), "-tls1_3", stdin=b"k\n" * 3000 + b"Q\n")
        self.assertEqual(done.code, 0, done)
        self.assertEqual(counter(metrics, "tls_failed_total"), 0)
        self.assertEqual(counter(metrics, "tls_too_much_total"), 0)
        self.echoes(server.port)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""um-tls serve against clients of others: curl, openssl s_client, gnutls-cli, Python's ssl."""

import contextlib
import os
import ssl
import subprocess
import tempfile
import threading
import time

from harness import (PATIENCE, VERSIONS, Child, MemoryClient, ServedCase, both_versions, cert,
                     client_context, cut_off, exchange, main, make_root, pair, receive, receive_all,
                     run, tcp, tls)


class Curl(ServedCase):
    @classmethod
    def make_options(cls):
        cls.place = tempfile.TemporaryDirectory(prefix="interop.")
        cls.big = make_root(cls.place.name)
        return "--root", os.path.join(cls.place.name, "root")

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.place.cleanup()

    def setUp(self):
        self.program = self.need("curl")

    def curl(self, paths, *options, ca="ca.pem", server=None):
        urls = [(server or self.server).url + path for path in paths.split()]
        return run(self.program, "-q", "-sS", "--max-time", str(PATIENCE), "--cacert", cert(ca),
                   *options, *urls)

    def test_get(self):
        """Both versions; certificate chains of ECDSA and RSA."""
        for chain in ("server", "server-rsa", "server-rsa4096"):
            server = self.server
            if chain != self.chain:
                server = self.serve(*self.server_options(), chain=chain)
            for version in VERSIONS:
                with self.subTest(chain=chain, version=version):
                    done = self.curl("/big.bin", "-v", f"--tlsv{version}", "--tls-max", version,
                                     server=server)
                    self.expect(done, 0, err=b"SSL connection using TLSv" + version.encode())
                    self.same(done.out, self.big)

    def server_options(self):
        return "--root", os.path.join(self.place.name, "root")

    def test_offload(self):
        """Handshakes on worker threads; a number and auto choose the same way for all."""
        for chain in ("server", "server-rsa4096"):
            for policy in ("always", "auto", "1"):
                server = self.serve(*self.server_options(), "--offload", policy, chain=chain)
                for version in VERSIONS:
                    with self.subTest(chain=chain, policy=policy, version=version):
                        done = self.curl("/big.bin", "-v", f"--tlsv{version}", "--tls-max", version,
                                         server=server)
                        self.expect(done, 0, err=b"SSL connection using TLSv" + version.encode())
                        self.same(done.out, self.big)

    def test_not_trusted(self):
        """The control: curl does verify."""
        self.expect(self.curl("/hello.txt", ca="unknown-ca.pem"), 60)

    def test_head(self):
        done = self.curl("/big.bin", "-I")
        self.expect(done, 0, rb"\AHTTP/1\.1 200 .*Content-Length: %d\r\n.*\r\n\r\n\Z" % len(self.big))

    def test_files(self):
        for path, body in {"/empty.txt": b"", "/sub/": b"<p>sub\n", "/with%20space.txt": b"space\n",
                           "/inside.txt": b"hello\n", "/hello.txt?query": b"hello\n"}.items():
            with self.subTest(path=path):
                done = self.curl(path, "-f")
                self.expect(done, 0)
                self.assertEqual(done.out, body)

    def test_range(self):
        size = len(self.big)
        for wanted, part in {"100-199": self.big[100:200], "-5": self.big[-5:],
                             f"{size - 3}-": self.big[-3:], f"5-{size * 2}": self.big[5:]}.items():
            with self.subTest(range=wanted):
                done = self.curl("/big.bin", "-r", wanted, "-w", "%{stderr}%{http_code}")
                self.expect(done, 0, err=b"206")
                self.same(done.out, part)
        self.expect(self.curl("/big.bin", "-i", "-r", f"{size}-"), 0,
                    rb"^HTTP/1\.1 416 .*Content-Range: bytes \*/%d\r\n" % size)

    def test_keep_alive(self):
        """One connection for a file, a 404, a HEAD-like empty file and a file again."""
        done = self.curl("/hello.txt /missing /empty.txt /hello.txt",
                         "-w", "[%{http_code} %{num_connects}]")
        self.expect(done, 0, rb"\Ahello\n\[200 1\].*\[404 0\]\[200 0\]hello\n\[200 0\]\Z")

    def test_a_long_request_and_half_a_short_one(self):
        """Together, and the other half when the first was answered."""
        with tls(self.server.port) as connection:
            connection.sendall(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 3000 +
                               b"\r\n\r\nGET /hello.txt HT")
            self.assertEqual(connection.recv(4096)[:15], b"HTTP/1.1 200 OK")
            time.sleep(0.05)
            connection.sendall(b"TP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            rest = receive_all(connection)
            self.assertEqual(rest[-6:], b"hello\n", rest)

    def test_uploads_refused(self):
        source = os.path.join(self.place.name, "root", "hello.txt")
        big = os.path.join(self.place.name, "root", "big.bin")
        for arguments in (["-T", source], ["-T", big], ["-d", "a=b"], ["-X", "DELETE"],
                          ["-d", "@" + big]):
            with self.subTest(arguments=arguments):
                done = self.curl("/new.txt" if "-T" in arguments else "/hello.txt", *arguments,
                                 "-o", os.devnull, "-w", "%{http_code}")
                self.expect(done, 0, rb"\A405\Z")
        self.assertFalse(os.path.exists(os.path.join(self.place.name, "root", "new.txt")))

    def test_http2_not_spoken(self):
        done = self.curl("/hello.txt", "--http2", "-v", "-w", "%{http_version}")
        self.expect(done, 0, rb"hello\n1\.1\Z", rb"ALPN[^\n]*accepted[^\n]*http/1\.1")

    def test_slow_reader(self):
        done = self.curl("/big.bin", "--limit-rate", "2M")
        self.expect(done, 0)
        self.same(done.out, self.big)

    def test_two_threads(self):
        """Connections land on both reactors; each gets what it asked for."""
        server = self.serve(*self.server_options(), "--threads", "2")
        children = [Child(self.program, "-q", "-sS", "--cacert", cert("ca.pem"),
                          server.url + "/big.bin") for _ in range(16)]
        try:
            for child in children:
                self.assertEqual(child.wait(), 0, child.said("err"))
                self.same(child.said(), self.big)
        finally:
            for child in children:
                child.stop()

    def test_min_tls(self):
        server = self.serve(*self.server_options(), "--min-tls", "1.3")
        self.expect(self.curl("/hello.txt", "--tls-max", "1.2", server=server), 35)
        self.expect(self.curl("/hello.txt", server=server), 0, b"hello")

    @both_versions
    def test_mutual(self, version):
        server = self.serve(*self.server_options(), "--client-ca", cert("client-ca.pem"))

        def curl_with(*more):
            return self.curl("/hello.txt", "--tls-max", version, *more, server=server)

        certificate, key = pair("client")
        self.expect(curl_with("--cert", certificate, "--key", key), 0, b"hello")
        certificate, key = pair("client-unknown")
        for refused in curl_with(), curl_with("--cert", certificate, "--key", key):
            self.assertNotEqual(refused.code, 0, refused)
            self.assertEqual(refused.out, b"")


class SClient(ServedCase):
    """openssl s_client, to an echo server."""
    options = ("--echo",)

    def setUp(self):
        self.need("openssl")

    def client(self, *arguments, server=None, ca="ca.pem"):
        child = Child("openssl", "s_client", "-connect", f"127.0.0.1:{(server or self.server).port}",
                      "-CAfile", cert(ca), "-servername", "localhost", "-verify_hostname",
                      "localhost", "-verify_return_error", *arguments, stdin=subprocess.PIPE)
        self.addCleanup(child.stop)
        return child

    @staticmethod
    def finish(client):
        """Ends its input; its exit code and everything that it said."""
        with contextlib.suppress(BrokenPipeError):
            client.process.stdin.close()
        return client.wait(), client.said() + client.said("err")

    def talk(self, *arguments, line=b"hello-hello", **more):
        """A line there and back, and before it the ticket of TLS 1.3; everything that was said.
        s_client prints without buffering what comes back, so that may land inside the rest."""
        client = self.client(*arguments, **more)
        client.say(line + b"\n")
        client.wait_for(line)
        code, said = self.finish(client)
        self.assertEqual(code, 0, said)
        return said

    def refused(self, *arguments, **more):
        client = self.client(*arguments, **more)
        client.say(b"hello-hello\n")
        client.wait()
        code, said = self.finish(client)
        self.assertNotEqual(code, 0, said)
        self.assertNotIn(b"hello-hello", said)
        return said

    def test_versions(self):
        for chain, kind in {"server": b"ECDSA", "server-rsa": b"RSA"}.items():
            server = self.server if chain == self.chain else self.serve("--echo", chain=chain)
            for version in VERSIONS:
                with self.subTest(chain=chain, version=version):
                    said = self.talk("-tls" + version.replace(".", "_"), "-status", server=server)
                    self.assertIn(b"Verification: OK", said)
                    self.assertIn(b"New, TLSv" + version.encode(), said)
                    self.assertRegex(said, b"Peer signature type: (?i:" + kind + b")")
                    self.assertIn(b"OCSP response: no response sent", said)

    def test_old_and_weak_refused(self):
        self.refused("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
        self.refused("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA")
        self.talk("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256")

    def test_not_trusted(self):
        self.refused(ca="unknown-ca.pem")

    @both_versions
    def test_resumption(self, version):
        protocol = "-tls" + version.replace(".", "_")
        session = os.path.join(self.folder(), "session.pem")
        first = self.talk(protocol, "-sess_out", session)
        self.assertIn(b"New, TLSv" + version.encode(), first)
        self.assertIn(b"Reused, TLSv" + version.encode(), self.talk(protocol, "-sess_in", session))

    def test_resumption_among_threads(self):
        server = self.serve("--echo", "--threads", "2")
        session = os.path.join(self.folder(), "session.pem")
        self.talk("-tls1_2", "-sess_out", session, server=server)
        for _ in range(8):
            self.assertIn(b"Reused, TLSv1.2", self.talk("-tls1_2", "-sess_in", session,
                                                        server=server))

    def test_alpn(self):
        server = self.serve("--echo", "--alpn", "one,two")
        self.assertIn(b"ALPN protocol: two", self.talk("-alpn", "zero,two", server=server))
        self.assertIn(b"ALPN protocol: one", self.talk("-alpn", "two,one", server=server))
        self.assertIn(b"No ALPN negotiated", self.talk(server=server))
        self.assertIn(b"no application protocol", self.refused("-alpn", "zero", server=server))

    @both_versions
    def test_mutual(self, version):
        server = self.serve("--echo", "--client-ca", cert("client-ca.pem"))
        protocol = "-tls" + version.replace(".", "_")
        certificate, key = pair("client")
        said = self.talk(protocol, "-cert", certificate, "-key", key, server=server)
        self.assertIn(b"Client root", said)  # whom the server says it trusts
        self.refused(protocol, server=server)
        certificate, key = pair("client-unknown")
        self.refused(protocol, "-cert", certificate, "-key", key, server=server)

    def test_key_update(self):
        """New keys for the client's direction (k) and for both (K), between bytes."""
        client = self.client("-tls1_3")
        for count, command in enumerate((b"K", b"k", b"K", b"K"), 1):
            client.say(command + b"\n")
            client.wait_for(rb"(?s)(?:KEYUPDATE.*){%d}" % count, "err")
            client.say(b"after-update-%d\n" % count)
            client.wait_for(b"after-update-%d" % count)
        code, said = self.finish(client)
        self.assertEqual(code, 0, said)

    def test_renegotiation_refused(self):
        client = self.client("-tls1_2")
        client.say(b"before-it\n")
        client.wait_for(b"before-it")
        client.say(b"R\n")
        client.wait_for(b"RENEGOTIATING", "err")
        client.wait()
        code, said = self.finish(client)
        self.assertNotEqual(code, 0, said)
        self.talk()

    def test_early_data_off(self):
        folder = self.folder()
        session, early = os.path.join(folder, "session.pem"), os.path.join(folder, "early")
        with open(early, "wb") as file:
            file.write(b"early\n")
        first = self.talk("-tls1_3", "-sess_out", session)
        self.assertIn(b"Max Early Data: 0", first)
        said = self.talk("-tls1_3", "-sess_in", session, "-early_data", early)
        self.assertNotIn(b"Early data was accepted", said)
        self.assertNotIn(b"\nearly\n", said)

    def test_small_records(self):
        self.talk("-max_send_frag", "512", line=os.urandom(3000).hex().encode())


class GnuTls(ServedCase):
    options = ("--echo",)

    def setUp(self):
        self.need("gnutls-cli")

    def talk(self, version, *arguments, ca="ca.pem", line=b"hello from gnutls"):
        client = Child("gnutls-cli", "--x509cafile", cert(ca), "--port", str(self.server.port),
                       "--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{version}", *arguments,
                       "localhost", stdin=subprocess.PIPE)
        self.addCleanup(client.stop)
        client.say(line + b"\n")
        with contextlib.suppress(AssertionError):
            client.wait_for(b"(?m)^" + line)
        with contextlib.suppress(BrokenPipeError):
            client.process.stdin.close()
        return client.wait(), client.said() + client.said("err")

    @both_versions
    def test_versions(self, version):
        code, said = self.talk(version)
        self.assertEqual(code, 0, said)
        self.assertIn(b"The certificate is trusted", said)
        self.assertIn(b"Description: (TLS" + version.encode(), said)
        self.assertRegex(said, rb"(?m)^hello from gnutls$")

    @both_versions
    def test_resumption(self, version):
        code, said = self.talk(version, "--resume", "--waitresumption")
        self.assertEqual(code, 0, said)
        self.assertIn(b"*** This is a resumed session", said)
        self.assertRegex(said, rb"(?m)^hello from gnutls$")

    def test_not_trusted(self):
        code, said = self.talk("1.3", ca="unknown-ca.pem")
        self.assertNotEqual(code, 0, said)
        self.assertNotRegex(said, rb"(?m)^hello from gnutls$")


class PythonSsl(ServedCase):
    options = ("--echo",)

    @both_versions
    def test_echo(self, version):
        """Sizes on both sides of a record's, on one connection."""
        context = client_context(version)
        with tls(self.server.port, context) as connection:
            for size in (1, 100, 16384, 16385, 2000000):
                data = os.urandom(size)
                self.same(exchange(connection, data), data)
            connection.unwrap()

    @both_versions
    def test_one_byte_writes(self, version):
        """A record each, in pieces that the server sees in any grouping."""
        context = client_context(version)
        data = os.urandom(1000)
        with tls(self.server.port, context) as connection:
            for byte in data:
                connection.sendall(bytes([byte]))
            self.same(receive(connection, len(data)), data)
            connection.unwrap()

    @both_versions
    def test_one_byte_segments(self, version):
        """The handshake and the data arrive one byte at a time."""
        context = client_context(version)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with tcp(self.server.port) as plain:
            plain.setsockopt(6, 1, 1)  # TCP_NODELAY

            def step(function, *arguments):
                while True:
                    try:
                        result = function(*arguments)
                        break
                    except ssl.SSLWantReadError:
                        flush()
                        incoming.write(plain.recv(65536) or self.fail("closed"))
                flush()
                return result

            def flush():
                for byte in outgoing.read():
                    plain.send(bytes([byte]))

            step(client.do_handshake)
            step(client.write, b"byte by byte")
            self.assertEqual(step(client.read, 100), b"byte by byte")

    @both_versions
    def test_resumption(self, version):
        context = client_context(version)
        with tls(self.server.port, context) as first:
            self.assertEqual(exchange(first, b"x"), b"x")
            session = first.session
            self.assertFalse(first.session_reused)
            first.unwrap()
        with tls(self.server.port, context, session=session) as second:
            self.assertTrue(second.session_reused)
            self.assertEqual(exchange(second, b"y"), b"y")
            second.unwrap()

    @both_versions
    def test_half_close(self, version):
        """close_notify after the last byte: all that was sent still comes back, then the
        server's close_notify."""
        data = os.urandom(200000)
        back = bytearray()
        with tcp(self.server.port) as plain:
            client = MemoryClient(plain, client_context(version))
            client.step(client.tls.do_handshake)
            self.assertEqual(client.tls.write(data), len(data))
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
                client.tls.unwrap()
            sender = threading.Thread(target=plain.sendall, args=(client.outgoing.read(),))
            sender.start()
            try:
                while True:
                    piece = client.step(client.tls.read, 65536)
                    if not piece:
                        break
                    back += piece
            except ssl.SSLZeroReturnError:
                pass
            sender.join(PATIENCE)
            self.same(bytes(back), data)
            self.assertEqual(receive_all(plain), b"")

    def test_cut_off(self):
        """FIN without close_notify ends the connection, and no other."""
        with tls(self.server.port) as beside:
            connection = tls(self.server.port)
            self.assertEqual(exchange(connection, b"x"), b"x")
            cut_off(connection)
            self.assertEqual(exchange(beside, b"still here"), b"still here")

    def test_many(self):
        """200 connections side by side on one thread, each with its own bytes."""
        with contextlib.ExitStack() as stack:
            context = client_context()
            open_ones = [stack.enter_context(tls(self.server.port, context)) for _ in range(200)]
            for count, connection in enumerate(open_ones):
                connection.sendall(b"number %d" % count)
            for count, connection in enumerate(open_ones):
                wanted = b"number %d" % count
                self.assertEqual(receive(connection, len(wanted)), wanted)
            self.assertEqual(self.server.threads(), 1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What um-tls is told wrongly: one clear line on stderr, nothing on stdout, and the exit code of
tools/um-tls/exit_codes.h."""

import os
import socket
import tempfile

from harness import Case, cert, free_port, main, pair, tcp_peer, um_tls

USAGE, FILE, RESOLVE, UNREACHABLE, LISTEN = 64, 66, 68, 69, 73


class Serve(Case):
    def refused(self, code, pattern, *options, certificate=None, key=None, listen="127.0.0.1:0"):
        certificate = certificate or pair("server")[0]
        key = key or pair("server")[1]
        done = um_tls("serve", "--listen", listen, "--cert", certificate, "--key", key, *options)
        self.one_line(done, code, pattern)

    def file(self, content):
        file = tempfile.NamedTemporaryFile(prefix="interop.")
        self.addCleanup(file.close)
        file.write(content)
        file.flush()
        return file.name

    def test_certificate(self):
        self.refused(FILE, b"/nonexistent/cert.pem.*No such file", "--echo",
                     certificate="/nonexistent/cert.pem")
        garbage = self.file(os.urandom(1000))
        self.refused(FILE, garbage.encode() + b".*PEM", "--echo", certificate=garbage)
        self.refused(FILE, b"PEM", "--echo", certificate=self.file(b""))
        self.refused(FILE, b"certificate /:", "--echo", certificate="/")

    def test_key(self):
        self.refused(FILE, b"/nonexistent/key.*No such file", "--echo", key="/nonexistent/key")
        garbage = self.file(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        self.refused(FILE, garbage.encode(), "--echo", key=garbage)
        for other in ("mismatch.key", "server-rsa.key"):
            self.refused(FILE, other.encode() + b" does not belong to .*server.pem", "--echo",
                         key=cert(other))

    def test_client_ca(self):
        self.refused(FILE, b"/nonexistent.*No such file", "--echo", "--client-ca", "/nonexistent")
        garbage = self.file(b"not a certificate\n")
        self.refused(FILE, garbage.encode(), "--echo", "--client-ca", garbage)

    def test_root(self):
        self.refused(FILE, b"/nonexistent: No such file", "--root", "/nonexistent")
        self.refused(FILE, b"server.pem: Not a directory", "--root", cert("server.pem"))

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            for threads in ("1", "2"):
                self.refused(LISTEN, address.encode() + b".*in use", "--echo", "--threads", threads,
                             listen=address)

    def test_port_in_use_by_us(self):
        """Two servers with --threads would share a port without a word."""
        server = self.serve("--echo", "--threads", "2")
        self.refused(LISTEN, b"in use", "--echo", "--threads", "2",
                     listen=f"127.0.0.1:{server.port}")
        self.echoes(server.port)

    def test_address(self):
        self.refused(LISTEN, b"192.0.2.1", "--echo", listen="192.0.2.1:0")
        self.refused(RESOLVE, b"no..such.name", "--echo", listen="no..such.name:443")
        for address in ("localhost", "", "127.0.0.1:99999", "::1:443", "127.0.0.1:x"):
            with self.subTest(address=address):
                done = um_tls("serve", "--listen", address, "--cert", pair("server")[0], "--key",
                              pair("server")[1], "--echo")
                self.one_line(done, done.code, address.encode())
                self.assertIn(done.code, (USAGE, RESOLVE, LISTEN))

    def test_usage(self):
        for options in (["--nonsense"], ["--threads", "0"], ["--threads", "two"], ["--threads"],
                        ["--echo=yes"], ["--echo", "--root", "/"], ["--min-tls", "1.1"],
                        ["--hsts", "60", "--echo"], ["--alpn", "a,,b"], ["--idle-timeout", "soon"],
                        ["--idle-timeout", "0x10"], ["--drain-timeout", "1e3"], ["stray"]):
            with self.subTest(options=options):
                self.refused(USAGE, options[0].strip("-").partition("=")[0].encode(), *options)
        self.refused(USAGE, b"timeout", "--idle-timeout", "0")
        self.one_line(um_tls("serve", "--echo"), USAGE, b"--cert")
        self.one_line(um_tls(), USAGE, b"--help")
        self.one_line(um_tls("nonsense"), USAGE, b"nonsense.*--help")

    def test_help(self):
        for words in (["--help"], ["serve", "--help"], ["connect", "--help"], ["load", "--help"]):
            self.expect(um_tls(*words), 0, rb"Usage: um-tls.*Exit codes:.*\b73\b", rb"\A\Z")


class Connect(Case):
    def refused(self, code, pattern, peer, *options, **more):
        self.one_line(um_tls("connect", peer, "--ca", cert("ca.pem"), *options, **more), code, pattern)

    def test_refused(self):
        port = free_port()
        self.refused(UNREACHABLE, b"localhost:%d.*refused" % port, f"localhost:{port}")

    def test_no_route(self):
        """A TCP connection to a broadcast address is refused by the kernel itself."""
        self.refused(UNREACHABLE, rb"255\.255\.255\.255:443.*unreachable", "255.255.255.255:443")

    def test_no_answer(self):
        """A listener whose queue is full drops what comes."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            fillers = [socket.socket() for _ in range(8)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            try:
                self.refused(75, b"localhost:%d" % address[1], f"localhost:{address[1]}",
                             "--timeout", "0.5")
            finally:
                for filler in fillers:
                    filler.close()

    def test_name(self):
        self.refused(RESOLVE, b"no..such.name", "no..such.name:443")
        self.refused(RESOLVE, b"localhost.*port", "localhost:no-such-service")

    def test_usage(self):
        for peer in ("localhost", "::1:443", "", ":"):
            with self.subTest(peer=peer):
                self.refused(USAGE, b"", peer)
        self.one_line(um_tls("connect"), USAGE, b"HOST:PORT")
        self.refused(USAGE, b"--max-tls", "localhost:1", "--max-tls", "1.1")
        self.refused(USAGE, b"--key", "localhost:1", "--key", pair("client")[1])
        self.refused(USAGE, b"timeout", "localhost:1", "--timeout", "soon")

    def test_files(self):
        self.one_line(um_tls("connect", "localhost:1", "--ca", "/nonexistent"), FILE,
                      b"/nonexistent.*No such file")
        self.one_line(um_tls("connect", "localhost:1", "--ca", cert("server.key")), FILE,
                      b"server.key")
        self.refused(FILE, b"/nonexistent", "localhost:1", "--cert", "/nonexistent")
        self.refused(FILE, b"mismatch.key", "localhost:1", "--cert", pair("client")[0], "--key",
                     cert("mismatch.key"))
        self.refused(FILE, b"server.pem", "localhost:1", "--session", cert("server.pem"))

    def test_tls_client_meets_silence(self):
        """Neither side of a half-open port says anything: the time limit does."""
        with tcp_peer(lambda plain: plain.recv(1 << 20) and plain.recv(1)) as port:
            self.refused(75, b"localhost", f"localhost:{port}", "--timeout", "0.5")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""um-tls connect against servers of others (openssl s_server, gnutls-serv, nginx, Python's ssl)
and our own, and against peers that misbehave."""

import contextlib
import os
import random
import socket
import ssl
import subprocess
import threading

from harness import (PATIENCE, UM_TLS, Case, Child, both_versions, cert, cut_off, free_port,
                     listening, main, make_root, pair, receive, receive_all, reset, run,
                     server_context, tcp_peer, tls_peer, um_tls, wait_until)


class Client(Case):
    def connect(self, port, *options, host="localhost", ca="ca.pem", **more):
        return um_tls("connect", f"{host}:{port}", "--ca", cert(ca), *options, **more)

    def begin(self, port, *options):
        """A client whose input stays open."""
        client = Child(UM_TLS, "connect", f"localhost:{port}", "--ca", cert("ca.pem"), *options,
                       stdin=subprocess.PIPE)
        self.addCleanup(client.stop)
        return client

    def verbose(self, port, version, *options, **more):
        """Connects with --verbose; ends well, and speaks this version."""
        done = self.connect(port, "--verbose", "--max-tls", version, *options, **more)
        self.expect(done, 0, err=b"protocol: TLSv" + version.encode())
        return done

    def certificate(self, name):
        certificate, key = pair(name)
        return "--cert", certificate, "--key", key

    def resumes(self, port, version, stdin):
        """The second connection resumes the first one's session; both work."""
        session = os.path.join(self.folder(), "session.pem")
        first = self.verbose(port, version, "--session", session, stdin=stdin)
        second = self.verbose(port, version, "--session", session, stdin=stdin)
        self.assertIn(b"resumed: no", first.err)
        self.assertIn(b"resumed: yes", second.err)
        self.assertEqual(os.stat(session).st_mode & 0o777, 0o600)
        return second

    def mutual(self, port, version, stdin, answer):
        """With a certificate it is served; with none or one of another CA it is an error."""
        done = self.verbose(port, version, *self.certificate("client"), stdin=stdin)
        self.assertIn(answer, done.out)
        for options in (), self.certificate("client-unknown"):
            refused = self.connect(port, "--max-tls", version, *options, stdin=stdin)
            self.assertIn(refused.code, (65, 74, 76), refused)
            self.assertNotIn(answer, refused.out)
            self.assertEqual(refused.err.count(b"\n"), 1, refused)


class OpenSslServer(Client):
    def server(self, *arguments, chain="server", stdin=subprocess.DEVNULL):
        """s_server, and the port it picked."""
        certificate, key = pair(chain)
        child = Child(self.need("openssl"), "s_server", "-accept", "127.0.0.1:0", "-cert",
                      certificate, "-cert_chain", certificate, "-key", key, *arguments, stdin=stdin)
        self.addCleanup(child.stop)
        return child, int(child.wait_for(rb"ACCEPT \S*:(\d+)").group(1))

    @both_versions
    def test_reversed_lines(self, version):
        for chain in ("server", "server-rsa"):
            _, port = self.server("-rev", "-tls" + version.replace(".", "_"), chain=chain)
            done = self.verbose(port, version, stdin=b"hello\n")
            self.assertEqual(done.out, b"olleh\n")

    @both_versions
    def test_www(self, version):
        _, port = self.server("-www", "-alpn", "foo,bar")
        done = self.verbose(port, version, "--alpn", "baz,bar", stdin=b"GET / HTTP/1.0\r\n\r\n")
        self.assertRegex(done.out, rb"(?s)HTTP/1\.0 200 ok.*Protocol *: TLSv" + version.encode())
        self.assertIn(b"ALPN: bar,", done.err)

    @both_versions
    def test_resumption(self, version):
        _, port = self.server("-www")
        done = self.resumes(port, version, b"GET / HTTP/1.0\r\n\r\n")
        self.assertIn(b"Reused, TLSv" + version.encode(), done.out)

    @both_versions
    def test_mutual(self, version):
        _, port = self.server("-www", "-Verify", "2", "-verify_return_error", "-CAfile",
                              cert("client-ca.pem"))
        self.mutual(port, version, b"GET / HTTP/1.0\r\n\r\n", b"200 ok")

    def test_key_update(self):
        """The server asks for new keys in the middle; both directions go on."""
        server, port = self.server("-tls1_3", stdin=subprocess.PIPE)
        client = self.begin(port)
        for count in range(4):
            client.say(b"up-%d\n" % count)
            server.wait_for(b"up-%d" % count)
            server.say(b"down-%d\n" % count)
            client.wait_for(b"down-%d" % count)
            server.say(b"K\n" if count % 2 else b"k\n")
        client.process.stdin.close()
        self.assertEqual(client.wait(), 0, client.said("err"))

    def test_alpn_refused(self):
        _, port = self.server("-www", "-alpn", "foo")
        done = self.connect(port, "--alpn", "bar", stdin=b"GET / HTTP/1.0\r\n\r\n")
        self.assertIn(done.code, (0, 76), done)  # s_server goes on without before OpenSSL 3.2

    def test_no_common_cipher(self):
        _, port = self.server("-www", "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA")
        self.one_line(self.connect(port), 76, b"handshake failure")


class GnuTlsServer(Client):
    def server(self, *arguments):
        program = self.need("gnutls-serv")
        certificate, key = pair("server")
        port = free_port()
        child = Child(program, "--echo", "--port", str(port), "--x509certfile", certificate,
                      "--x509keyfile", key, *arguments)
        self.addCleanup(child.stop)
        wait_until(lambda: listening(port) or child.process.poll() is not None, "gnutls-serv")
        self.assertIsNone(child.process.poll(), child.said("err"))
        return port

    def talk(self, port, version, *options):
        """gnutls-serv ends without waiting for anything once it sees ours end, and may do so
        before its answer is out: so the end comes after the answer."""
        client = self.begin(port, "--verbose", "--max-tls", version, *options)
        client.say(b"hello to gnutls\n")
        client.wait_for(b"hello to gnutls")
        client.process.stdin.close()
        self.assertEqual(client.wait(), 0, client.said("err"))
        self.assertIn(b"protocol: TLSv" + version.encode(), client.said("err"))
        return client.said("err")

    @both_versions
    def test_echo(self, version):
        self.talk(self.server(), version)

    @both_versions
    def test_resumption(self, version):
        port, session = self.server(), os.path.join(self.folder(), "session.pem")
        self.assertIn(b"resumed: no", self.talk(port, version, "--session", session))
        self.assertIn(b"resumed: yes", self.talk(port, version, "--session", session))

    @both_versions
    def test_mutual(self, version):
        port = self.server("--require-client-cert", "--verify-client-cert", "--x509cafile",
                           cert("client-ca.pem"))
        self.talk(port, version, *self.certificate("client"))
        refused = self.connect(port, "--max-tls", version, stdin=b"hello\n")
        self.assertIn(refused.code, (65, 74, 76), refused)
        self.assertNotIn(b"hello", refused.out)


class Nginx(Client):
    """In the foreground, with a configuration and a prefix of its own."""
    CONFIGURATION = """
        daemon off;
        master_process off;
        pid {folder}/pid;
        error_log stderr error;
        events {{ worker_connections 256; }}
        http {{
          access_log off;
          client_body_temp_path {folder}/body;
          proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/fastcgi;
          uwsgi_temp_path {folder}/uwsgi;
          scgi_temp_path {folder}/scgi;
          ssl_protocols TLSv1.2 TLSv1.3;
          ssl_certificate {certificate};
          ssl_certificate_key {key};
          ssl_session_cache shared:sessions:1m;
          root {folder}/root;
          server {{
            listen 127.0.0.1:{port} ssl;
          }}
          server {{
            listen 127.0.0.1:{mutual_port} ssl;
            ssl_client_certificate {client_ca};
            ssl_verify_client on;
          }}
        }}
        """

    def setUp(self):
        program, folder = self.need("nginx"), self.folder()
        certificate, key = pair("server")
        self.big = make_root(folder)
        self.port, self.mutual_port = free_port(), free_port()
        configuration = os.path.join(folder, "nginx.conf")
        with open(configuration, "w", encoding="utf-8") as file:
            file.write(self.CONFIGURATION.format(
                folder=folder, certificate=certificate, key=key, port=self.port,
                mutual_port=self.mutual_port, client_ca=cert("client-ca.pem")))
        # As root it serves as nobody, who may not look into our folder otherwise.
        os.chmod(folder, 0o755)
        server = Child(program, "-e", "stderr", "-p", folder, "-c", configuration)
        self.addCleanup(server.stop)
        wait_until(lambda: listening(self.port) or server.process.poll() is not None, "nginx")
        self.assertIsNone(server.process.poll(), server.said("err"))

    def get(self, path, port, version, *options):
        """What nginx sent, and what our client said. The input stays open: nginx sends no
        close_notify of its own once it has seen ours."""
        client = self.begin(port, "--verbose", "--max-tls", version, *options)
        client.say(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path)
        self.assertEqual(client.wait(), 0, client.said("err"))
        self.assertIn(b"protocol: TLSv" + version.encode(), client.said("err"))
        return client.said(), client.said("err")

    @both_versions
    def test_get(self, version):
        out, _ = self.get(b"/big.bin", self.port, version)
        head, _, body = out.partition(b"\r\n\r\n")
        self.assertRegex(head, rb"^HTTP/1\.1 200 OK\r\n")
        self.same(body, self.big)

    @both_versions
    def test_resumption(self, version):
        session = os.path.join(self.folder(), "session.pem")
        for resumed in (b"no", b"yes"):
            out, err = self.get(b"/hello.txt", self.port, version, "--session", session)
            self.assertTrue(out.endswith(b"hello\n"), out)
            self.assertIn(b"resumed: " + resumed, err)

    @both_versions
    def test_alpn(self, version):
        _, err = self.get(b"/hello.txt", self.port, version, "--alpn", "h3,http/1.1")
        self.assertIn(b"ALPN: http/1.1,", err)

    @both_versions
    def test_input_that_ends(self, version):
        """As when a request is piped in: nginx must not see our side close."""
        done = self.connect(self.port, "--keep-open", "--max-tls", version,
                            stdin=b"GET /hello.txt HTTP/1.0\r\n\r\n")
        self.assertEqual(done.code, 0, done)
        self.assertTrue(done.out.endswith(b"hello\n"), done.out)

    @both_versions
    def test_mutual(self, version):
        out, _ = self.get(b"/hello.txt", self.mutual_port, version, *self.certificate("client"))
        self.assertTrue(out.endswith(b"hello\n"), out)
        out, _ = self.get(b"/hello.txt", self.mutual_port, version)
        self.assertRegex(out, rb"^HTTP/1\.1 400 ")  # nginx says it in HTTP


class Ours(Client):
    @both_versions
    def test_echo(self, version):
        for chain in ("server", "server-rsa"):
            server = self.serve("--echo", "--threads", "2", chain=chain)
            data = os.urandom(5000000)
            self.same(self.verbose(server.port, version, stdin=data).out, data)

    @both_versions
    def test_resumption(self, version):
        server = self.serve("--echo", "--threads", "2")
        self.assertEqual(self.resumes(server.port, version, b"again").out, b"again")

    @both_versions
    def test_mutual(self, version):
        server = self.serve("--echo", "--client-ca", cert("client-ca.pem"))
        self.mutual(server.port, version, b"who is it", b"who is it")

    @both_versions
    def test_mutual_resumption(self, version):
        server = self.serve("--echo", "--client-ca", cert("client-ca.pem"))
        session = os.path.join(self.folder(), "session.pem")
        for resumed in (b"no", b"yes"):
            done = self.verbose(server.port, version, "--session", session,
                                *self.certificate("client"), stdin=b"x")
            self.assertIn(b"resumed: " + resumed, done.err)

    def test_alpn(self):
        server = self.serve("--echo", "--alpn", "one,two")
        done = self.connect(server.port, "--alpn", "three,two", "--verbose", stdin=b"x")
        self.expect(done, 0, b"^x$", b"ALPN: two,")
        self.one_line(self.connect(server.port, "--alpn", "three"), 76, b"no application protocol")

    def test_min_tls(self):
        server = self.serve("--echo", "--min-tls", "1.3")
        self.one_line(self.connect(server.port, "--max-tls", "1.2"), 76, b"protocol version")
        self.expect(self.connect(server.port, stdin=b"x"), 0, b"^x$")

    def test_ip_literals(self):
        """Verified against the addresses in the certificate."""
        server = self.serve("--echo")
        self.expect(self.connect(server.port, host="127.0.0.1", stdin=b"x"), 0, b"^x$")
        try:
            server = self.serve("--echo", listen="[::1]:0")
        except AssertionError as problem:
            self.skipTest(f"no IPv6 loopback: {problem}")
        self.expect(self.connect(server.port, host="[::1]", stdin=b"x"), 0, b"^x$")

    def test_server_name(self):
        server = self.serve("--echo")
        self.expect(self.connect(server.port, "--servername", "any.example.test", stdin=b"x"), 0, b"x")
        self.one_line(self.connect(server.port, "--servername", "example.test"), 77, b"example.test")
        self.one_line(self.connect(server.port, "--servername", "127.0.0.2"), 77, rb"127\.0\.0\.2")

    def test_standard_output_closed(self):
        server = self.serve("--echo")
        client = subprocess.Popen([UM_TLS, "connect", server.address, "--ca",
                                   cert("ca.pem")], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        client.stdout.close()
        client.stdin.write(b"x")
        client.stdin.flush()
        self.assertEqual(client.wait(PATIENCE), 74)
        self.assertEqual(client.stderr.read().count(b"\n"), 1)
        client.stdin.close()
        client.stderr.close()


class NotTrusted(Client):
    """No byte of the input reaches a server that is not who it should be."""

    def refused(self, chain, pattern, *options, host="localhost", ca="ca.pem"):
        got = []
        with tls_peer(lambda connection: got.append(receive_all(connection)),
                      server_context(chain)) as port:
            self.one_line(self.connect(port, *options, host=host, ca=ca, stdin=b"secret"), 77, pattern)
            self.assertEqual(b"".join(got), b"")
            done = self.connect(port, "--insecure", "--verbose", host=host, stdin=b"secret")
            self.expect(done, 0, err=b"verified: no")
            wait_until(lambda: got and got[-1] == b"secret", "the input of --insecure")

    def test_unknown_ca(self):
        self.refused("unknown", b"localhost.*issuer")

    def test_other_ca(self):
        self.refused("server", b"localhost.*(issuer|self-signed)", ca="unknown-ca.pem")

    def test_expired(self):
        self.refused("expired", b"localhost.*expired")

    def test_wrong_name(self):
        self.refused("wrongname", b"localhost.*(name|mismatch)")

    def test_wrong_address(self):
        self.refused("wrongname", rb"127\.0\.0\.1.*(address|mismatch)", host="127.0.0.1")

    def test_self_signed(self):
        folder = self.folder()
        certificate, key = os.path.join(folder, "own.pem"), os.path.join(folder, "own.key")
        done = run(self.need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
                   "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", certificate,
                   "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
        self.expect(done, 0)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with tls_peer(receive_all, context) as port:
            self.one_line(self.connect(port), 77, b"localhost.*self.signed")
            self.expect(um_tls("connect", f"localhost:{port}", "--ca", certificate), 0)


class Misbehaving(Client):
    def test_plain_http(self):
        def answer(plain):
            plain.recv(4096)
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            receive_all(plain)

        with tcp_peer(answer) as port:
            self.one_line(self.connect(port), 76, rb"localhost.*%d" % port)

    def test_garbage(self):
        def answer(plain):
            plain.recv(4096)
            with contextlib.suppress(OSError):
                plain.sendall(bytes(random.Random(1).randrange(32, 256) for _ in range(5000)))
                receive_all(plain)

        with tcp_peer(answer) as port:
            self.one_line(self.connect(port), 76, rb"localhost[^\n]*%d" % port)

    def test_closes_at_once(self):
        with tcp_peer(lambda plain: plain.recv(4096)) as port:
            done = self.connect(port)
            self.one_line(done, done.code, rb"localhost[^\n]*%d" % port)
            self.assertIn(done.code, (65, 74), done)

    def test_resets_in_handshake(self):
        def answer(plain):
            plain.recv(4096)
            reset(plain)

        with tcp_peer(answer) as port:
            self.one_line(self.connect(port), 74, rb"localhost.*reset[^\n]*")

    def test_stalls_in_handshake(self):
        with tcp_peer(receive_all) as port:
            self.one_line(self.connect(port, "--timeout", "0.5"), 75, rb"localhost[^\n]*%d" % port)

    @both_versions
    def test_truncated(self, version):
        """Bytes came, the end did not: they are delivered, and the exit code says it."""
        def answer(connection):
            receive_all(connection)
            connection.sendall(b"half of i")
            cut_off(connection)

        with tls_peer(answer, server_context(version=version)) as port:
            done = self.connect(port)
        self.expect(done, 65, b"^half of i$", b"without close_notify")
        self.assertEqual(done.err.count(b"\n"), 1, done)

    @both_versions
    def test_resets(self, version):
        def answer(connection):
            receive(connection, 1)
            reset(connection)

        with tls_peer(answer, server_context(version=version)) as port:
            client = self.begin(port)
            client.say(b"x")
            self.assertEqual(client.wait(), 74, client.said("err"))
            self.assertRegex(client.said("err"), rb"\Aum-tls[^\n]*localhost[^\n]*reset[^\n]*\n\Z")

    @both_versions
    def test_stalls(self, version):
        event = threading.Event()

        def stall(connection):
            connection.sendall(b"and then ")
            event.wait(PATIENCE)

        with tls_peer(stall, server_context(version=version)) as port:
            done = self.connect(port, "--idle-timeout", "0.5")
            event.set()
        self.expect(done, 75, b"^and then $", rb"localhost[^\n]*%d" % port)

    @both_versions
    def test_half_close(self, version):
        """The end of the input is sent as close_notify; what comes after it still arrives."""
        data = os.urandom(1000000)

        def answer(connection):
            self.assertEqual(receive_all(connection), b"the question")
            connection.sendall(data)

        with tls_peer(answer, server_context(version=version)) as port:
            done = self.connect(port, stdin=b"the question")
        self.expect(done, 0)
        self.same(done.out, data)

    @both_versions
    def test_byte_by_byte(self, version):
        """Each way through a relay that passes on single bytes."""
        server = self.serve("--echo")
        with tcp_peer(lambda plain: relay(plain, server.port, lambda data: data, piece=1)) as port:
            done = self.verbose(port, version, stdin=b"drop by drop")
            self.assertEqual(done.out, b"drop by drop")

    @both_versions
    def test_flipped_byte(self, version):
        """A byte changed on the way, of the handshake or of the data, never passes as data."""
        server = self.serve("--echo")
        data = os.urandom(100000)
        for position in (70, 1000, 20000, 90000):
            with tcp_peer(lambda plain: relay(plain, server.port, flip(position))) as port:
                done = self.connect(port, "--max-tls", version, stdin=data)
            self.assertIn(done.code, (74, 76, 77), done)
            self.assertTrue(data.startswith(done.out), done)
            self.assertEqual(done.err.count(b"\n"), 1, done)


def flip(position):
    """Changes the byte at that position of a stream."""
    seen = 0

    def change(data):
        nonlocal seen
        at, seen = position - seen, seen + len(data)
        if 0 <= at < len(data):
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        return data
    return change


def relay(plain, port, change, piece=65536):
    """Between a client and a server; change() sees what the server says."""
    def copy(source, target, change):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if not data:
                    break
                data = change(data)
                for start in range(0, len(data), piece):
                    target.sendall(data[start:start + piece])
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as server:
        for end in (plain, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upward = threading.Thread(target=copy, args=(plain, server, lambda data: data))
        upward.start()
        copy(server, plain, change)
        upward.join(PATIENCE)


if __name__ == "__main__":
    main()

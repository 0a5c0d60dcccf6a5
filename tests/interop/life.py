#!/usr/bin/env python3
"""A server's life: new certificates without a dropped connection, sessions that outlive their
server, rights given up, no core dumps, and no plaintext of one connection left for another."""

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import stat

from harness import (PATIENCE, SANITIZED, UM_TLS, Case, Child, cert, client_context, exchange,
                     main, pair, receive, run, tls, um_tls)

OTHER = "nobody"


def serial(connection):
    return connection.getpeercert()["serialNumber"]


def count_said(server, pattern):
    return len(re.findall(pattern, server.said("err")))


class Reload(Case):
    def files(self, name="server"):
        """A certificate and key that can be replaced."""
        folder = self.folder()
        os.chmod(folder, 0o755)
        files = os.path.join(folder, "chain.pem"), os.path.join(folder, "key.pem")
        self.replace(files, name)
        return files

    def replace(self, files, name, only=None):
        for i, (file, source) in enumerate(zip(files, pair(name))):
            if only in (None, i):
                shutil.copy(source, file + ".new")
                os.chmod(file + ".new", 0o644)
                os.replace(file + ".new", file)

    def reload(self, server, pattern=rb"reloaded"):
        before = count_said(server, pattern)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(b"(?s)" + b".*?".join([pattern] * (before + 1)), "err")

    def test_new_certificate(self):
        """For new connections; an old one, in the middle of its data, and a handshake that has
        begun go on with theirs. On every reactor."""
        files = self.files()
        server = self.serve("--echo", "--threads", 2, files=files)
        old = [tls(server.port) for _ in range(8)]
        begun = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        first = serial(old[0])
        self.replace(files, "server-rsa")
        self.reload(server)
        new = [tls(server.port) for _ in range(8)]
        self.assertEqual({serial(one) for one in old}, {first})
        self.assertNotIn(first, {serial(one) for one in new})
        late = client_context().wrap_socket(begun, server_hostname="localhost")
        data = os.urandom(100000)
        for one in old + new + [late]:
            self.same(exchange(one, data), data)
            one.close()

    def test_bad_files_change_nothing(self):
        """A key of another certificate, garbage, nothing at all: said, with the file's name; the
        old certificate stays, and a later good one is taken."""
        files = self.files()
        server = self.serve("--echo", files=files)
        with tls(server.port) as one:
            first = serial(one)
            self.replace(files, "server-rsa", only=1)
            self.reload(server, rb"nothing was reloaded")
            server.wait_for(rb"does not belong", "err")
            with open(files[0], "w", encoding="ascii") as file:
                file.write("garbage\n")
            self.reload(server, rb"nothing was reloaded")
            server.wait_for(re.escape(files[0].encode()), "err")
            os.remove(files[0])
            self.reload(server, rb"nothing was reloaded")
            self.same(exchange(one, b"still here"), b"still here")
        with tls(server.port) as one:
            self.assertEqual(serial(one), first)
        self.replace(files, "server-rsa")
        self.reload(server)
        with tls(server.port) as one:
            self.assertNotEqual(serial(one), first)

    def test_signals_while_starting(self):
        """The certificate is a FIFO, so that the start lasts: they are heeded when it is over."""
        chain, key = self.files()
        fifo = chain + ".fifo"
        os.mkfifo(fifo)
        server = self.start(Child(UM_TLS, "serve", "--listen", "127.0.0.1:0", "--cert", fifo, "--key",
                                  key, "--echo"), code=0)
        with open(fifo, "wb") as writer, open(chain, "rb") as certificate:   # it reads by now
            server.process.send_signal(signal.SIGHUP)
            server.process.send_signal(signal.SIGUSR1)
            os.replace(chain, fifo)
            writer.write(certificate.read())
        port = int(server.wait_for(rb"listening on \S+:(\d+)\n").group(1))
        server.wait_for(rb"reloaded", "err")
        server.wait_for(rb"fiber 0x", "err")
        self.echoes(port)

    def test_under_load(self):
        """Reloads while curl after curl asks: not one fails."""
        curl = self.need("curl")
        files = self.files()
        server = self.serve("--body", 100000, "--threads", 2, files=files)
        for i in range(20):
            if i % 2:
                self.replace(files, ("server", "server-rsa")[i // 2 % 2])
                server.process.send_signal(signal.SIGHUP)
            done = run(curl, "-q", "-sS", "--cacert", cert("ca.pem"), "-w",
                       "%{http_code} %{size_download}\n", *(["-o", "/dev/null", server.url] * 5))
            self.expect(done, 0)
            self.assertEqual(done.out, 5 * b"200 100000\n")


class Sessions(Case):
    """Resumed, or not, as `openssl s_client` sees it."""

    def keys(self, *keys):
        file = os.path.join(self.folder(), "tickets")
        self.write(file, *keys)
        return file

    def write(self, file, *keys):
        with open(file, "wb") as out:
            out.write(b"".join(keys))

    def visit(self, server, session, version, save=False):
        """Whether it was resumed."""
        done = run(self.need("openssl"), "s_client", "-connect", server.address, "-CAfile",
                   cert("ca.pem"), "-" + version, "-ign_eof", "-sess_out" if save else "-sess_in", session,
                   stdin=b"GET / HTTP/1.0\r\n\r\n", timeout=PATIENCE)
        found = re.search(rb"^(New|Reused), ", done.out, re.M)
        self.assertTrue(found, done)
        return found.group(1) == b"Reused"

    def visits(self, first, second, wanted, change=lambda: None):
        for version in ("tls1_2", "tls1_3"):
            with self.subTest(version=version):
                session = os.path.join(self.folder(), "session")
                one = first()
                self.assertFalse(self.visit(one, session, version, save=True))
                change()
                self.assertEqual(self.visit(second(one), session, version), wanted)

    def serve_body(self, *options, **more):
        return self.serve("--body", 10, *options, **more)

    def test_same_server(self):
        self.visits(self.serve_body, lambda one: one, True)

    def test_any_reactor(self):
        """One set for the whole process: whichever thread the second connection comes to."""
        server = self.serve_body("--threads", 4)
        for _ in range(4):
            self.visits(lambda: server, lambda one: one, True)

    def test_after_a_reload(self):
        def reloaded(one):
            one.process.send_signal(signal.SIGHUP)
            one.wait_for(b"reloaded", "err")
            return one
        self.visits(self.serve_body, reloaded, True)

    def test_another_server(self):
        self.visits(self.serve_body, lambda one: self.serve_body(), False)

    def test_another_server_with_the_same_keys(self):
        file = self.keys(os.urandom(80))
        self.visits(lambda: self.serve_body("--ticket-keys", file),
                    lambda one: self.serve_body("--ticket-keys", file), True)

    def test_rotated(self):
        """A new key in front of the old: both work. Without the old: a full handshake."""
        old = os.urandom(80)
        file = self.keys(old)

        def changed(*keys):
            def change(one):
                self.write(file, *keys)
                one.process.send_signal(signal.SIGHUP)
                one.wait_for(b"reloaded", "err")
                return one
            return change
        for keys, wanted in (((os.urandom(80), old), True), ((os.urandom(80),), False)):
            self.write(file, old)
            server = self.serve_body("--ticket-keys", file)
            session = os.path.join(self.folder(), "session")
            self.assertFalse(self.visit(server, session, "tls1_3", save=True))
            self.assertEqual(self.visit(changed(*keys)(server), session, "tls1_3"), wanted)

    def test_bad_key_files(self):
        for content in (b"", os.urandom(79), os.urandom(81), os.urandom(9 * 80)):
            file = self.keys(content)
            chain, key = pair("server")
            done = um_tls("serve", "--listen", "127.0.0.1:0", "--cert", chain, "--key", key,
                          "--echo", "--ticket-keys", file)
            self.assertNotEqual(done.code, 0, done)
            self.assertIn(b"80 random bytes", done.err)
        good = self.keys(os.urandom(80))
        server = self.serve("--echo", "--ticket-keys", good)
        self.write(good, b"short")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(rb"nothing was reloaded", "err")
        self.echoes(server.port)


class Rights(Case):
    def status(self, server, field):
        with open(f"/proc/{server.pid}/status", encoding="ascii") as file:
            return re.search(rf"^{field}:\s+(.*)$", file.read(), re.M).group(1).split()

    def root(self):
        if os.getuid():
            self.skipTest("only root can become another user")

    def readable(self, folder):
        """The certificates where that user finds them."""
        os.chmod(folder, 0o755)
        files = []
        for source in pair("server"):
            files.append(os.path.join(folder, os.path.basename(source)))
            shutil.copy(source, files[-1])
        return files

    def test_user(self):
        """Started by root on a port below 1024 and with a key only root can read; then it is
        nobody, with no way back, and serves files."""
        self.root()
        user = pwd.getpwnam(OTHER)
        folder = self.folder()
        root = os.path.join(folder, "root")
        os.makedirs(root)
        files = self.readable(folder)
        os.chmod(files[1], stat.S_IRUSR)
        with open(os.path.join(root, "page"), "w", encoding="ascii") as page:
            page.write("hello\n")
        server = self.serve("--root", root, "--threads", 2, "--user", OTHER, files=files)
        self.assertEqual(self.status(server, "Uid"), [str(user.pw_uid)] * 4)
        self.assertEqual(self.status(server, "Gid"), [str(user.pw_gid)] * 4)
        self.assertNotIn("0", self.status(server, "Groups"))
        self.assertEqual(int(self.status(server, "CapEff")[0], 16), 0)
        with tls(server.port) as one:
            one.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            self.assertIn(b"hello", one.recv(10000))
        # It cannot read its key again, says so, and goes on.
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(rb"key .*Permission denied", "err")
        server.wait_for(rb"nothing was reloaded", "err")
        with tls(server.port) as one:
            one.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            self.assertIn(b"hello", one.recv(10000))

    def test_files_only_root_reads(self):
        """The ring has that user's rights: what only root can read is not served."""
        self.root()
        folder = self.folder()
        root = os.path.join(folder, "root")
        os.makedirs(root)
        files = self.readable(folder)
        with open(os.path.join(root, "secret"), "w", encoding="ascii") as page:
            page.write("secret\n")
        os.chmod(os.path.join(root, "secret"), stat.S_IRUSR)
        server = self.serve("--root", root, "--user", OTHER, files=files)
        with tls(server.port) as one:
            one.sendall(b"GET /secret HTTP/1.0\r\n\r\n")
            self.assertRegex(one.recv(10000), rb"^HTTP/1.1 403")

    def test_group(self):
        self.root()
        group = grp.getgrall()[3]
        server = self.serve("--echo", "--user", f"{OTHER}:{group.gr_name}")
        self.assertEqual(self.status(server, "Gid"), [str(group.gr_gid)] * 4)
        self.echoes(server.port)

    def test_no_such_user(self):
        chain, key = pair("server")
        for name in ("no-such-user-here", OTHER + ":no-such-group-here"):
            done = um_tls("serve", "--listen", "127.0.0.1:0", "--cert", chain, "--key", key, "--echo",
                          "--user", name)
            self.one_line(done, 64, rb"no such")

    def test_core_dumps(self):
        """Off, for core_pattern's pipes as well: a process that is not dumpable belongs to root
        in /proc; on with --core."""
        def limit(server):
            with open(f"/proc/{server.pid}/limits", encoding="ascii") as file:
                return re.search(r"Max core file size\s+(\S+)\s+(\S+)", file.read()).groups()
        server = self.serve("--echo", core=())
        self.assertEqual(limit(server), ("0", "0"))
        if not os.getuid():
            owned = self.serve("--echo", "--user", OTHER, core=())
            self.assertEqual(os.stat(f"/proc/{owned.pid}/mem").st_uid, 0, "not dumpable")
            allowed = self.serve("--echo", "--user", OTHER)
            self.assertEqual(os.stat(f"/proc/{allowed.pid}/mem").st_uid, pwd.getpwnam(OTHER).pw_uid)
        self.echoes(server.port)


class Wiped(Case):
    """What a peer said and was told is in no memory of the server once it was handled."""

    def setUp(self):
        if SANITIZED:
            self.skipTest("a sanitizer keeps freed memory, stacks of its own, and terabytes of shadows")

    def memory(self, server):
        with open(f"/proc/{server.pid}/maps", encoding="utf-8") as maps, \
                open(f"/proc/{server.pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, rights = line.split()[:2]
                if "rw" not in rights or "[v" in line:
                    continue
                first, last = (int(x, 16) for x in span.split("-"))
                yield line, b"".join(self.pages(memory.fileno(), first, last))

    def pages(self, fd, first, last):
        """What can be read of a mapping; stacks have guard pages within."""
        while first < last:
            try:
                piece = os.pread(fd, min(last - first, 1 << 20), first)
            except OSError:
                piece = b""
            yield piece
            first += len(piece) or 4096

    def find(self, server, *markers):
        try:
            return [(marker, line) for line, data in self.memory(server) for marker in markers
                    if marker in data]
        except PermissionError:
            self.skipTest("may not read the memory of a process here")

    def marker(self, name):
        return b"PLAINTEXT-" + name + b"-" + os.urandom(8).hex().encode()

    def test_echo(self):
        for options in ((), ("--wipe",)):
            with self.subTest(options=options):
                self.echoes_and_forgets(*options)

    def echoes_and_forgets(self, *options):
        said, early = self.marker(b"said"), self.marker(b"early")
        server = self.serve("--echo", *options)
        for version in ("1.2", "1.3"):
            with tls(server.port, client_context(version)) as one:
                for size in (1, 20, 900):
                    data = early + said * size
                    one.sendall(data)
                    self.assertEqual(receive(one, len(data)), data)
                self.assertEqual(self.find(server, said), [], "while it is open, and idle")
        self.echoes(server.port, size=10)
        self.assertEqual(self.find(server, said, early), [])

    def test_http(self):
        folder = self.folder()
        asked, cookie, told = self.marker(b"asked"), self.marker(b"cookie"), self.marker(b"told")
        with open(os.path.join(folder, told.decode()), "wb") as file:
            file.write(told * 3000)
        server = self.serve("--root", folder)
        with tls(server.port) as one:
            one.sendall(b"GET /%s?%s HTTP/1.1\r\nHost: localhost\r\nCookie: %s\r\n"
                        b"Connection: close\r\n\r\n" % (told, asked, cookie))
            data = bytearray()
            while piece := one.recv(65536):
                data += piece
            self.assertIn(told * 3000, bytes(data))
        self.assertEqual(self.find(server, cookie, told * 2), [])


if __name__ == "__main__":
    main()

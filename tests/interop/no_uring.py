#!/usr/bin/env python3
"""um-tls where io_uring cannot be used: it says which of the reasons it is and what to do."""

import contextlib
import os
import resource
import shutil

from harness import UM_TLS, Case, Server, cert, main, pair, run, um_tls

NO_REACTOR = 71
NOBODY = 65534


class Denied(Case):
    def denied(self, how, *arguments):
        """um-tls where io_uring_setup() fails so."""
        done = run(os.environ["DENY_URING"], how, UM_TLS, *arguments,
                   env={**os.environ, "UM_BACKEND": "uring"})
        if done.code == 77:
            self.skipTest(done.err.decode().strip())
        return done

    def serve(self, how, *options):
        certificate, key = pair("server")
        return self.denied(how, "serve", "--listen", "127.0.0.1:0", "--cert", certificate, "--key",
                           key, "--echo", *options)

    def commands(self, how):
        yield self.serve(how)
        yield self.serve(how, "--threads", "2")
        yield self.denied(how, "connect", "localhost:1", "--ca", cert("ca.pem"))
        yield self.denied(how, "load", "localhost:1", "--ca", cert("ca.pem"), "--echo")

    def test_enosys(self):
        for done in self.commands("enosys"):
            self.one_line(done, NO_REACTOR, rb"io_uring: not in this kernel[^\n]*Linux 6\.1[^\n]*seccomp")

    def test_eperm(self):
        sysctl = b"0"
        with contextlib.suppress(FileNotFoundError), \
                open("/proc/sys/kernel/io_uring_disabled", "rb") as file:
            sysctl = file.read().strip()
        pattern = rb"seccomp[^\n]*allow io_uring_setup"
        if sysctl != b"0":
            pattern = b"io_uring_disabled=" + sysctl
        for done in self.commands("eperm"):
            self.one_line(done, NO_REACTOR, b"io_uring: forbidden[^\n]*" + pattern)

    def test_version(self):
        """Which backends work is part of --version."""
        self.expect(self.denied("enosys", "--version"), 0, rb"um-tls [0-9.]+.*uring[^\n]*not in this kernel")


class LockedMemory(Case):
    """An ordinary user with a low limit of locked memory: served, or told clearly."""

    def setUp(self):
        self.place = self.folder()
        os.chmod(self.place, 0o755)
        self.certificate, self.key = (shutil.copy(file, self.place) for file in pair("server"))
        for file in self.certificate, self.key:
            os.chmod(file, 0o644)

    def limits(self, limit):
        def apply():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
        return apply

    def try_limit(self, limit, *options):
        probe = um_tls("--version", preexec_fn=self.limits(limit)) if self.reachable() else None
        if probe is None or probe.code:
            self.skipTest("an ordinary user cannot run the program that was built")
        try:
            server = Server("--echo", *options, preexec_fn=self.limits(limit),
                            files=(self.certificate, self.key))
        except AssertionError as problem:
            self.assertRegex(str(problem), r"um-tls serve: io_uring: no memory for a ring; the "
                             r"locked-memory limit is \d+ KiB: raise it")
            return
        self.start(server, code=0)
        for size in (1, 100000, 3000000):
            self.echoes(server.port, size)
        self.assertEqual(server.said("err"), b"")

    @staticmethod
    def reachable():
        """Every folder above the program may be entered by others."""
        folder = UM_TLS
        while folder != "/":
            if not os.stat(folder).st_mode & 0o001:
                return False
            folder = os.path.dirname(folder)
        return True

    def test_limits(self):
        for limit in (0, 64 * 1024, 8 * 1024 * 1024):
            with self.subTest(limit=limit):
                self.try_limit(limit)

    def test_threads(self):
        self.try_limit(64 * 1024, "--threads", "2")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""um-tls where io_uring cannot be used, or not as root does: asked for by name it says which of
the reasons it is and what to do; otherwise epoll serves, and all that is different is one line."""

import contextlib
import glob
import json
import os
import resource
import shutil
import tempfile

from harness import PATIENCE, UM_TLS, Case, Server, cert, main, note, number, pair, run, um_tls

NO_REACTOR = 71
NOBODY = 65534
MIB = 1024 * 1024
MEMLOCK = 8 * MIB     # systemd's default for everybody
WARNING = rb"\Abio_uring warning: io_uring: [^\n]*epoll backend is used[^\n]*\n\Z"


def environment(backend=None):
    """With UM_BACKEND, or without where nothing is asked for."""
    rest = {name: value for name, value in os.environ.items() if name != "UM_BACKEND"}
    return {**rest, "UM_BACKEND": backend} if backend else rest


class Works(Case):
    """What shows that a place serves: files by curl, bytes there and back, many connections."""

    def place(self):
        """A copy of the program, its library, a certificate and a file that anyone may read."""
        folder = tempfile.TemporaryDirectory(prefix="interop.")
        self.addCleanup(folder.cleanup)
        os.chmod(folder.name, 0o755)
        build = os.path.dirname(os.path.dirname(os.path.dirname(UM_TLS)))
        for file in (UM_TLS, *glob.glob(os.path.join(build, "libbio_uring.so.?")), *pair("server"),
                     cert("ca.pem")):
            os.chmod(shutil.copy(file, folder.name), 0o755)
        os.mkdir(os.path.join(folder.name, "root"))
        self.data = os.urandom(8 * MIB)
        with open(os.path.join(folder.name, "root", "file.bin"), "wb") as file:
            file.write(self.data)
        os.chmod(os.path.join(folder.name, "root"), 0o755)
        return folder.name

    def server(self, place, *options, backend=None, **more):
        env = {**environment(backend), "LD_LIBRARY_PATH": place}
        files = [os.path.join(place, name) for name in ("server.pem", "server.key")]
        return self.start(Server(*options, program=os.path.join(place, "um-tls"), files=files,
                                 env=env, **more), code=0)

    def everything(self, warned=False, **how):
        place = self.place()
        for options in (("--echo",), ("--root", os.path.join(place, "root"))):
            server = self.server(place, *options, **how)
            if "--echo" in options:
                self.echoes(server.port, 5 * MIB)
                self.many(server)
            else:
                self.download(server)
            if warned:
                self.assertRegex(server.said("err"), WARNING)
            else:
                self.assertEqual(server.said("err"), b"")

    def download(self, server):
        done = run(self.need("curl"), "-q", "-sS", "--max-time", str(PATIENCE), "--cacert",
                   cert("ca.pem"), server.url + "/file.bin")
        self.expect(done, 0)
        self.same(done.out, self.data)

    def many(self, server):
        count = number("UM_INTEROP_MANY", 1000)
        load = um_tls("load", server.address, "--ca", cert("ca.pem"), "--echo", "--connections",
                      count, "--requests", 4 * count, "--duration", PATIENCE, "--json")
        self.expect(load, 0)
        result = json.loads(load.out)
        self.assertEqual((result["operations"], result["errors"]["total"]), (4 * count, 0))


class Denied(Case):
    def denied(self, how, *arguments):
        """um-tls where io_uring_setup() fails so."""
        done = run(os.environ["DENY_URING"], how, UM_TLS, *arguments, env=environment("uring"))
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
        """Which backends work, and which is used, is part of --version."""
        pattern = rb"um-tls [0-9.]+.*uring[^\n]*not in this kernel.*epoll +works here\n"
        self.expect(self.denied("enosys", "--version"), 0, pattern + rb"used: none", rb"\A\Z")
        done = run(os.environ["DENY_URING"], "enosys", UM_TLS, "--version", env=environment())
        self.expect(done, 0, pattern + rb"used: epoll\n", rb"\A\Z")
        done = run(UM_TLS, "--version", env=environment("epoll"))
        self.expect(done, 0, rb"used: epoll\n", rb"\A\Z")

    def test_gibberish(self):
        done = run(UM_TLS, "load", "localhost:1", "--ca", cert("ca.pem"), "--echo",
                   env=environment("gibberish"))
        self.one_line(done, NO_REACTOR, b"UM_BACKEND is \"gibberish\"")


class Fallback(Works):
    def setUp(self):
        probe = run(os.environ["DENY_URING"], "eperm", "true")
        if probe.code == 77:
            self.skipTest(probe.err.decode().strip())

    def test_enosys(self):
        self.everything(warned=True, prefix=(os.environ["DENY_URING"], "enosys"))

    def test_eperm_on_two_threads(self):
        place = self.place()
        server = self.server(place, "--echo", "--threads", "2",
                             prefix=(os.environ["DENY_URING"], "eperm"))
        self.many(server)
        self.assertRegex(server.said("err"), WARNING)

    def test_client(self):
        server = self.serve("--echo", env=environment())
        done = run(os.environ["DENY_URING"], "eperm", UM_TLS, "connect", server.address, "--ca",
                   cert("ca.pem"), stdin=b"hello\n" * 10000, env=environment())
        self.expect(done, 0, err=WARNING)
        self.same(done.out, b"hello\n" * 10000)

    def test_by_name_without_a_word(self):
        self.everything(backend="epoll", prefix=(os.environ["DENY_URING"], "eperm"))


class Ordinary(Works):
    """An ordinary user under the usual limit of locked memory."""

    @staticmethod
    def become(limit):
        def apply():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
        return apply

    def test_default(self):
        self.everything(preexec_fn=self.become(MEMLOCK))

    def test_epoll(self):
        self.everything(backend="epoll", preexec_fn=self.become(MEMLOCK))

    def test_little_locked_memory(self):
        """Kernels differ in whether rings count: served by one backend or the other."""
        place = self.place()
        for limit in (0, 64 * 1024):
            with self.subTest(limit=limit):
                server = self.server(place, "--echo", "--threads", "2",
                                     preexec_fn=self.become(limit))
                for size in (1, 100000, 3 * MIB):
                    self.echoes(server.port, size)
                if server.said("err"):
                    self.assertRegex(server.said("err"), WARNING)
                    self.assertIn(b"locked-memory limit", server.said("err"))


class Quota(Works):
    """A fifth of one CPU, as a container may have."""
    SHARE = 20000, 100000

    def group(self):
        """A control group's file of processes to write to, and the one that counts throttling."""
        name = f"libbio_uring.{os.getpid()}"
        kinds = (("/sys/fs/cgroup", self.limit_v2), ("/sys/fs/cgroup/cpu", self.limit_v1))
        for base, write in kinds:
            folder = os.path.join(base, name)
            try:
                os.mkdir(folder)
            except OSError:
                continue
            self.addCleanup(os.rmdir, folder)
            try:
                write(folder)
            except OSError:
                continue
            return os.path.join(folder, "cgroup.procs"), os.path.join(folder, "cpu.stat")
        return self.skipTest("no control group with a CPU quota can be made here")

    def limit_v2(self, folder):
        with open(os.path.join(folder, "cpu.max"), "r+", encoding="ascii") as file:
            file.write("{} {}".format(*self.SHARE))

    def limit_v1(self, folder):
        for name, value in zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), self.SHARE):
            with open(os.path.join(folder, name), "r+", encoding="ascii") as file:
                file.write(str(value))

    def throttled(self, backend):
        processes, statistics = self.group()

        def join():
            with open(processes, "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
        self.everything(backend=backend, preexec_fn=join)
        with open(statistics, encoding="ascii") as file:
            counts = dict(line.split() for line in file)
        note(f"{backend or 'default'}: throttled in {counts['nr_throttled']} of "
             f"{counts['nr_periods']} periods")
        # Beside other work it may not get as much as it is allowed, and is not throttled then.
        self.assertGreater(int(counts["nr_periods"]), 0, "the quota was not in force")

    def test_default(self):
        self.throttled(None)

    def test_epoll(self):
        self.throttled("epoll")


if __name__ == "__main__":
    main()


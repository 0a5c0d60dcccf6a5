"""What the interop tests share: um-tls as a child process, peers as child processes, and TAP.

Every child is ended by its own process object when the test that started it ends, and every
wait has an end. From meson come UM_TLS (the program), UM_CERTS (the folder that certs/make.sh
fills) and UM_SANITIZE ("none" or what meson's b_sanitize says).
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import random
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest

UM_TLS = os.environ["UM_TLS"]
CERTS = os.environ["UM_CERTS"]
SANITIZED = os.environ.get("UM_SANITIZE", "none") != "none"
SOURCE = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
PATIENCE = 60   # seconds until something that should have happened is called stuck
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def cert(name):
    return os.path.join(CERTS, name)


def pair(name):
    return cert(name + ".pem"), cert(name + ".key")


def number(variable, default):
    """A size that the environment may raise: UM_INTEROP_..."""
    return int(os.environ.get(variable, default))


# ---- programs ----

class Done:
    """A program that has ended: its code, and its output as bytes."""

    def __init__(self, command, code, out, err):
        self.command, self.code, self.out, self.err = command, code, out, err

    def __str__(self):
        def shown(data):
            return data if len(data) < 800 else data[:400] + b" ... " + data[-400:]
        return f"{self.command} ended with {self.code}\n{shown(self.out)}\n{shown(self.err)}"


def run(*command, stdin=b"", timeout=PATIENCE, **more):
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout,
                              check=False, **more)
    except subprocess.TimeoutExpired as stuck:
        raise AssertionError(f"{command} did not end; said {stuck.stdout} {stuck.stderr}") from None
    return Done(command, done.returncode, done.stdout, done.stderr)


def um_tls(*arguments, **more):
    return run(UM_TLS, *map(str, arguments), **more)


class Child:
    """A running program whose output goes to files; stop() ends it and nothing else."""

    def __init__(self, *command, stdin=subprocess.DEVNULL, **more):
        self.command = command
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=stdin, stdout=self.out, stderr=self.err,
                                        **more)
        self.pid = self.process.pid

    def say(self, text):
        """To its standard input; a program that has ended does not mind."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(text)
            self.process.stdin.flush()

    def said(self, stream="out"):
        file = self.out if stream == "out" else self.err
        return os.pread(file.fileno(), 1 << 24, 0)

    def wait_for(self, pattern, stream="out"):
        """The match, as soon as it can be found in what was written."""
        end = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None
            found = re.search(pattern, self.said(stream))
            if found:
                return found
            if ended or time.monotonic() > end:
                raise AssertionError(f"{self.command} never said {pattern}: "
                                     f"{self.said()[-600:]} {self.said('err')[-600:]}")
            time.sleep(0.01)

    def wait(self, timeout=PATIENCE):
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} did not end: {self.said('err')}") from None

    def stop(self, how=signal.SIGTERM):
        """Its exit code; killed when it does not end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.wait()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for file in (self.out, self.err, self.process.stdin):
                if file:
                    with contextlib.suppress(BrokenPipeError):
                        file.close()


class Server(Child):
    """`um-tls serve`, started and listening."""

    # --core: /proc shows nothing of a program without it, but to root.
    def __init__(self, *options, chain="server", files=None, listen="127.0.0.1:0", prefix=(),
                 core=("--core",), program=UM_TLS, **more):
        certificate, key = files or pair(chain)
        super().__init__(*prefix, program, "serve", "--listen", listen, "--cert", certificate,
                         "--key", key, *core, *map(str, options), **more)
        try:
            self.port = int(self.wait_for(rb"listening on \S+:(\d+)\n").group(1))
        except AssertionError:
            self.stop(signal.SIGKILL)
            raise
        self.address = f"localhost:{self.port}"
        self.url = f"https://{self.address}"

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident(self):
        """KiB."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))

    def threads(self):
        """Without the workers for files: those that the kernel lends to io_uring, and ours."""
        count = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                with open(f"/proc/{self.pid}/task/{task}/comm", encoding="utf-8") as comm:
                    count += not comm.read().startswith(("iou-", "um-worker"))
            except OSError:
                pass  # has ended
        return count


def backend():
    """How um-tls talks to the kernel here: "uring" or "epoll"."""
    return re.search(rb"^used: (\w+)$", um_tls("--version").out, re.M).group(1).decode()


# ---- TLS of Python's own ----

def strict(context):
    """Some Pythons, Debian 12's among them, take FIN for close_notify unless told not to."""
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def client_context(version=None, ca="ca.pem", certificate=None):
    context = strict(ssl.create_default_context(cafile=cert(ca)))
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if certificate:
        context.load_cert_chain(*pair(certificate))
    return context


def server_context(chain="server", version=None, client_ca=None):
    context = strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.load_cert_chain(*pair(chain))
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cert(client_ca))
    return context


def tcp(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def tls(port, context=None, **more):
    """A connection whose end without close_notify raises, instead of passing as an end."""
    plain = tcp(port)
    try:
        return (context or client_context()).wrap_socket(
            plain, server_hostname="localhost", suppress_ragged_eofs=False, **more)
    except BaseException:
        plain.close()
        raise


class MemoryClient:
    """A TLS client in memory over a plain socket: for records that an SSLSocket would not let
    one hold back, change, or end with."""

    def __init__(self, plain, context):
        self.plain = plain
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def step(self, function, *arguments):
        """Calls it until it no longer lacks bytes of the server's."""
        while True:
            try:
                return function(*arguments)
            except ssl.SSLWantReadError:
                self.plain.sendall(self.outgoing.read())
                piece = self.plain.recv(65536)
                if not piece:
                    raise AssertionError("FIN without close_notify") from None
                self.incoming.write(piece)


def receive(connection, length):
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(min(65536, length - len(data)))
        if not piece:
            raise AssertionError(f"ended after {len(data)} of {length} bytes")
        data += piece
    return bytes(data)


def receive_all(connection):
    """Until the peer's close_notify, or FIN of a plain socket."""
    data = bytearray()
    while True:
        piece = connection.recv(65536)
        if not piece:
            return bytes(data)
        data += piece


def exchange(connection, data):
    """Sends and receives at once, from one thread as Python's ssl demands; what came back."""
    view, sent, back = memoryview(data), 0, bytearray()
    connection.setblocking(False)
    try:
        while len(back) < len(data):
            before = sent, len(back)
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                sent += connection.send(view[sent:sent + 65536]) if sent < len(data) else 0
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                piece = connection.recv(65536)
                if not piece:
                    raise AssertionError(f"ended after {len(back)} of {len(data)} bytes")
                back += piece
            if before == (sent, len(back)):
                ready = select.select([connection], [connection] if sent < len(data) else [], [],
                                      PATIENCE)
                if not any(ready):
                    raise AssertionError(f"stuck after {len(back)} of {len(data)} bytes")
    finally:
        connection.settimeout(PATIENCE)
    return bytes(back)


def cut_off(connection):
    """Ends a TLS connection with FIN, without close_notify."""
    socket.socket(fileno=connection.detach()).close()


def reset(connection):
    """Ends a connection with RST."""
    plain = socket.socket(fileno=connection.detach())
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.close()


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    return outgoing.read()


@contextlib.contextmanager
def tcp_peer(converse, host="127.0.0.1"):
    """A thread that accepts TCP connections one after the other and gives each to converse(),
    which may raise when the client goes away. Yields the port."""
    trouble = []
    with socket.create_server((host, 0)) as listener:
        def serve():
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                plain.settimeout(PATIENCE)
                with plain, contextlib.suppress(OSError):
                    try:
                        converse(plain)
                    except AssertionError as problem:
                        trouble.append(problem)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)
    if trouble:
        raise trouble[0]


def tls_peer(converse, context=None):
    """The same with TLS; it ends with close_notify unless converse() ended it otherwise."""
    context = context or server_context()

    def shake_hands(plain):
        with context.wrap_socket(plain, server_side=True) as connection:
            converse(connection)
            if connection.fileno() >= 0:
                connection.unwrap()
    return tcp_peer(shake_hands)


def free_port():
    """For a peer that takes its port as an argument: from outside the range out of which the
    kernel picks ports for others."""
    for _ in range(200):
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError as problem:
                if problem.errno != errno.EADDRINUSE:
                    raise
    raise AssertionError("no free port between 20000 and 29999")


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"still not: {what}")
        time.sleep(0.02)


def listening(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# ---- tests ----

def both_versions(test):
    """Runs test(self, version) with TLS 1.2 and 1.3."""
    @functools.wraps(test)
    def run_both(self):
        for version in VERSIONS:
            with self.subTest(version=version):
                test(self, version)
    return run_both


class Case(unittest.TestCase):
    maxDiff = 1000

    @staticmethod
    def need(program):
        """Its path; the test is skipped where it is not installed."""
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if not path:
            raise unittest.SkipTest(f"{program} is not installed")
        return path

    def start(self, child, code=None):
        """Stops it when the test ends, and sees that it ends as it should."""
        def stop():
            ended = child.stop()
            if code is not None:
                self.assertEqual(ended, code, f"exit code of {child.command}")
        self.addCleanup(stop)
        return child

    def serve(self, *options, **more):
        return self.start(Server(*options, **more), code=0)

    def folder(self):
        folder = tempfile.TemporaryDirectory(prefix="interop.")
        self.addCleanup(folder.cleanup)
        return folder.name

    def expect(self, done, code, out=None, err=None):
        """Exit code, and what the output matches."""
        self.assertEqual(done.code, code, done)
        if out is not None:
            self.assertRegex(done.out, re.compile(out, re.S), done)
        if err is not None:
            self.assertRegex(done.err, re.compile(err, re.S), done)

    def one_line(self, done, code, pattern):
        """Failed with this code, one line about it on stderr and nothing on stdout."""
        self.expect(done, code, rb"\A\Z", rb"\Aum-tls[^\n]*" + pattern + rb"[^\n]*\n\Z")

    def same(self, one, other):
        """Equal, without megabytes in the message."""
        if one != other:
            sums = [hashlib.sha256(data).hexdigest()[:12] for data in (one, other)]
            self.fail(f"{len(one)} bytes ({sums[0]}) instead of {len(other)} ({sums[1]})")

    def echoes(self, port, size=1000, **more):
        """A new connection to an echo server works, from its handshake to a clean end."""
        data = os.urandom(size)
        with tls(port, **more) as connection:
            self.same(exchange(connection, data), data)
            connection.unwrap()


class ServedCase(Case):
    """All tests of the class share one server, which must end well."""
    options = ()
    chain = "server"

    @classmethod
    def make_options(cls):
        return cls.options

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.make_options(), chain=cls.chain)

    @classmethod
    def tearDownClass(cls):
        said = cls.server.said("err")
        code = cls.server.stop()
        if code:
            raise AssertionError(f"the server ended with {code}: {said}")


def make_root(folder):
    """Files to serve; the content of big.bin."""
    big = os.urandom(3 * 1024 * 1024 + 17)
    os.makedirs(os.path.join(folder, "root", "sub"))
    for name, content in {"secret.txt": b"secret\n", "root/hello.txt": b"hello\n",
                          "root/empty.txt": b"", "root/sub/index.html": b"<p>sub\n",
                          "root/with space.txt": b"space\n", "root/big.bin": big}.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    os.symlink("../secret.txt", os.path.join(folder, "root", "out.txt"))
    os.symlink("../..", os.path.join(folder, "root", "sub", "up"))
    os.symlink("/", os.path.join(folder, "root", "slash"))
    os.symlink("hello.txt", os.path.join(folder, "root", "inside.txt"))
    return big


# ---- TAP ----

class Tap(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.count = 0

    def line(self, good, test, directive=""):
        self.count += 1
        print(f"{'ok' if good else 'not ok'} {self.count} - {self.name(test)}{directive}", flush=True)

    @staticmethod
    def name(test):
        return test.id().partition(".")[2] if "." in test.id() else test.id()

    def bad(self, test, problem):
        text = "".join(traceback.format_exception(*problem))
        self.line(False, test)
        for line in text.splitlines():
            print("# " + line, flush=True)
            print(line, file=sys.stderr)

    def addSuccess(self, test):
        self.line(True, test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.bad(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self.bad(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.bad(subtest, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line(True, test, f" # SKIP {reason}")


def note(text):
    """A measured figure, for whoever reads the log."""
    print(f"# {text}", flush=True)


def prepare_certificates():
    os.makedirs(os.path.dirname(CERTS), exist_ok=True)
    with open(CERTS + ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([os.path.join(SOURCE, "certs", "make.sh"), CERTS], check=True)


def main():
    """Runs the tests of the calling program, or those whose names its arguments are part of."""
    prepare_certificates()
    suite = unittest.TestSuite()
    for test_class in unittest.defaultTestLoader.loadTestsFromName("__main__"):
        names = [test for test in test_class if not sys.argv[1:] or
                 any(word in test.id() for word in sys.argv[1:])]
        suite.addTest(unittest.TestSuite(names))
    result = Tap()
    suite.run(result)
    print(f"1..{result.count}", flush=True)
    sys.exit(not result.wasSuccessful())

"""Who is compared: servers of this tree and, when installed, others; and how each is started."""

import os
import shutil

from machine import free_port

BASELINES = ["ours", "ours-fibers", "ours-offload", "epoll-best", "epoll-bio-buffer", "epoll-nginx",
             "threads", "plain-epoll", "plain-uring", "libssl-memory"]
# Enough to see where ours stands and how far the floor is.
QUICK = ["ours", "epoll-best", "epoll-bio-buffer", "plain-uring", "libssl-memory"]
PEERS = ["nginx", "haproxy", "hitch", "stunnel"]

# What `./run bench ablate` switches off: name -> (what it is without it, how: a switch of
# bench-ours, a variable of its environment, or None: UM_ABLATE names it to a build with
# -Dablation=true, see src/ablation.h).
ABLATIONS = {
    "io_uring": ("the epoll backend", "UM_BACKEND=epoll"),
    "defer-taskrun": ("completions when the kernel likes, not when the loop asks", None),
    "multishot": ("a submission for every receive", None),
    "incremental": ("every receive takes a whole provided buffer", None),
    "coalescing": ("each record and handshake message is a send(2) of its own", None),
    "write-behind": ("every write waits for the kernel", "--flush-each"),
    "shared-stack": ("OpenSSL on each fiber's own stack", None),
    "parking": ("a fiber for every connection, also while it is idle", "--no-park"),
    "release-buffers": ("OpenSSL keeps its record buffers while a connection is idle", None),
    "turns": ("no limit to what a connection reads in one turn", "--no-turns"),
    "no-sqpoll": ("a kernel thread polls for submissions", "--sqpoll"),
    "offload": ("no handshakes on worker threads", "--no-offload"),
    "one-ticket": ("two session tickets, as OpenSSL has it", "--two-tickets"),
    "no-auto-chain": ("the certificate chain is searched for in each handshake", "--auto-chain"),
}


class Contender:
    """A name, and how to start it for a workload: command() is None where it does not apply."""

    environment = None
    plain = False   # speaks no TLS
    memory = False  # serves nobody: prints its figure and ends

    def __init__(self, name, program):
        self.name, self.program = name, program

    def missing(self):
        return None if os.access(self.program, os.X_OK) else f"{self.program} is not built"

    def applies(self, workload):
        return True

    def service(self, workload):
        kind, *numbers = workload.service
        return [f"--{kind}"] + ([":".join(map(str, numbers))] if numbers else [])

    def tls(self, bench, workload):
        cert, key = bench.certificate(workload.cert)
        return ["--cert", cert, "--key", key]

    def command(self, bench, workload):
        where = ["--listen", f"127.0.0.1:{bench.arguments.port}"]
        keys = [] if self.plain else self.tls(bench, workload)
        return [self.program, *where, *keys, *self.service(workload), *self.switches(workload)]

    def switches(self, workload):
        return []


class Ours(Contender):
    """`um-tls serve` wherever it can do what is asked, else bench-ours."""

    def __init__(self, name, program, bench_ours, environment=None):
        super().__init__(name, program)
        self.bench_ours, self.environment = bench_ours, environment

    def command(self, bench, workload):
        where = ["--listen", f"127.0.0.1:{bench.arguments.port}"]
        rest = [*where, *self.tls(bench, workload), *self.service(workload)]
        if workload.service[0] == "answer":
            return [self.bench_ours, *rest]
        return [self.program, "serve", *rest, "--idle-timeout", 3600, "--handshake-timeout", 600,
                *bench.limits_off]


class OursAuto(Ours):
    def command(self, bench, workload):
        return super().command(bench, workload) + ["--offload", "auto"]


class Offload(Ours):
    """`um-tls serve` with handshakes on worker threads while several are in flight."""

    def applies(self, workload):
        return workload.name.startswith(("storm-", "hs-full"))

    def command(self, bench, workload):
        return super().command(bench, workload) + ["--offload", "auto"]


class Fibers(Contender):
    """bench-ours with a fiber for each connection, also while it is idle."""

    def applies(self, workload):
        return workload.kind == "idle"

    def switches(self, workload):
        return ["--no-park", "--small-buffer"]


class Epoll(Contender):
    def __init__(self, name, program, *switches):
        super().__init__(name, program)
        self.own = list(switches)

    def applies(self, workload):
        # It is about several writes a turn; elsewhere it only costs.
        return self.name != "epoll-bio-buffer" or workload.name.startswith(("small-", "pipeline-"))

    def switches(self, workload):
        # Memory is what idle-* compares, so there the baseline gives its buffers back.
        release = self.name == "epoll-best" and workload.kind == "idle"
        return self.own + ["--release-buffers"] * release


class Threads(Contender):
    def applies(self, workload):
        # 4,096 threads and more measure the scheduler's patience, and take minutes.
        return not any(part in workload.name for part in ("4096c", "idle-10000", "flood"))


class Plain(Contender):
    plain = True

    def applies(self, workload):
        return workload.kind == "load"


class Memory(Contender):
    memory = True

    def applies(self, workload):
        return workload.kind == "load" and workload.name != "accept-close"

    def command(self, bench, workload):
        extra = []
        if "--handshakes" in workload.load:
            extra += ["--handshakes"] + ["--resume"] * ("--resume" in workload.load)
            extra += ["--tls12"] * ("--tls12" in workload.load)
        size = workload.load[workload.load.index("--size") + 1] if "--size" in workload.load else 64
        self.environment = {"BENCH_ECHO_SIZE": str(size)}
        return [self.program, *self.tls(bench, workload), *self.service(workload), *extra]


class Variant(Contender):
    """Ours with one design decision switched off."""

    def __init__(self, name, program):
        super().__init__(name, program)
        self.own = []
        if name not in ABLATIONS:
            return
        how = ABLATIONS[name][1] or f"UM_ABLATE={name}"
        if how.startswith("--"):
            self.own = [how]
        else:
            self.environment = dict([how.split("=")])

    def switches(self, workload):
        return self.own


# ---- other people's servers ----


class Peer(Contender):
    """One worker, the same certificate and cipher, keep-alive without end, no log, a body from
    memory. Configuration is written into the benchmark's own folder."""

    def __init__(self, name):
        programs = {"stunnel": ("stunnel", "stunnel4")}.get(name, (name,))
        path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
        found = [shutil.which(program, path=path) for program in programs]
        super().__init__(name, next(filter(None, found), ""))

    def missing(self):
        return None if self.program else "not installed"

    def applies(self, workload):
        return workload.service == ("body", 64) and workload.kind in ("load", "idle")

    def write(self, bench, suffix, text):
        path = os.path.join(bench.children.directory, f"{self.name}.{suffix}")
        with open(path, "w") as f:
            f.write(text)
        return path

    def start(self, bench, workload):
        """(command, port)"""
        port = bench.arguments.port or free_port()
        cert, key = bench.certificate(workload.cert)
        both = self.write(bench, "pem", open(key).read() + open(cert).read())
        return getattr(self, self.name)(bench, port, cert, key, both), port

    def nginx(self, bench, port, cert, key, both):
        config = self.write(bench, "conf", f"""
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 65536;
pid {bench.children.directory}/nginx.pid; error_log stderr crit;
events {{ worker_connections 30000; multi_accept on; }}
http {{
  access_log off; default_type application/octet-stream;
  keepalive_requests 1000000000; keepalive_timeout 3600s; reset_timedout_connection off;
  client_body_temp_path {bench.children.directory}; proxy_temp_path {bench.children.directory};
  fastcgi_temp_path {bench.children.directory}; uwsgi_temp_path {bench.children.directory};
  scgi_temp_path {bench.children.directory};
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache off; ssl_session_tickets on;
    location / {{ return 200 "{'x' * 64}"; }}
  }}
}}
""")
        return [self.program, "-p", bench.children.directory, "-c", config]

    def haproxy(self, bench, port, cert, key, both):
        config = self.write(bench, "cfg", f"""
global
  nbthread 1
  no strict-limits
  maxconn 30000
  ssl-default-bind-options ssl-min-ver TLSv1.2
  tune.ssl.cachesize 0
defaults
  mode http
  timeout client 3600s
  timeout connect 10s
  timeout server 3600s
  timeout http-keep-alive 3600s
frontend bench
  bind 127.0.0.1:{port} ssl crt {both} alpn http/1.1 backlog 4096
  http-request return status 200 content-type application/octet-stream string {'x' * 64}
""")
        return [self.program, "-db", "-q", "-f", config]

    def hitch(self, bench, port, cert, key, both):
        config = self.write(bench, "conf", f"""
frontend = "[127.0.0.1]:{port}"
backend = "[127.0.0.1]:{bench.backend_port()}"
pem-file = "{both}"
workers = 1
backlog = 4096
keepalive = 3600
daemon = off
quiet = on
tls-protos = TLSv1.2 TLSv1.3
""" + ("user = \"nobody\"\n" if os.getuid() == 0 else ""))
        return [self.program, f"--config={config}"]

    def stunnel(self, bench, port, cert, key, both):
        config = self.write(bench, "conf", f"""
foreground = yes
debug = 0
pid =
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[bench]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{bench.backend_port()}
cert = {both}
TIMEOUTidle = 3600
""")
        return [self.program, config]


def all_contenders(build):
    """name -> Contender, for every name that --contenders and --peers know."""
    def program(name):
        return os.path.join(build, "bench", name)

    um_tls = os.path.join(build, "tools", "um-tls", "um-tls")
    epoll = program("epoll-best")
    found = [
        Ours("ours", um_tls, program("bench-ours")),
        OursAuto("ours-auto", um_tls, program("bench-ours")),
        Fibers("ours-fibers", program("bench-ours")),
        Offload("ours-offload", um_tls, program("bench-ours")),
        # Not by default: the same library where io_uring is forbidden.
        Ours("ours-epoll", um_tls, program("bench-ours"), {"UM_BACKEND": "epoll"}),
        Epoll("epoll-best", epoll),
        Epoll("epoll-bio-buffer", epoll, "--bio-buffer"),
        Epoll("epoll-nginx", epoll, "--nginx"),
        # Not by default: shows what giving buffers back costs the baseline.
        Epoll("epoll-release", epoll, "--release-buffers"),
        Threads("threads", program("bench-threads")),
        Plain("plain-epoll", program("plain-epoll")),
        Plain("plain-uring", program("plain-uring")),
        Memory("libssl-memory", program("libssl-memory")),
        *(Peer(name) for name in PEERS),
    ]
    return {c.name: c for c in found}


def variants(build):
    ours = os.path.join(build, "bench", "bench-ours")
    return {name: Variant(name, ours) for name in ("all", *ABLATIONS)}


def ablation_names():
    return list(ABLATIONS)

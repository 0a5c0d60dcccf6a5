"""What is measured: each workload's server behaviour, load and main figure."""

import collections

# figure: the main one, by which contenders are compared; lower is better.
# service: what a server does, as (kind, numbers...): echo, body (HTTP), answer.
# load: arguments of bench-load.  kind: how it is run (measure.py).
# bytes: of an operation, where megabytes are the better unit.
Workload = collections.namedtuple(
    "Workload", "name what figure kind service load cert bytes beside",
    defaults=("cpu_us", "load", ("echo",), [], "ecdsa", 0, None))

FIGURES = {
    "cpu_us": "server CPU, us per operation",
    "p99_us": "latency, 99th percentile, us",
    "pss_bytes": "memory (PSS), bytes per connection",
}

IDLE_FIRST = 200
STORM_BURST = 16
# Of what the strongest baseline can do: together 70 % of its CPU.
STORM_ECHO, STORM_HANDSHAKES = 0.2, 0.5
FLOOD_PEERS = 8


def label(size):
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if size >= unit:
            return f"{size // unit}{letter}"
    return f"{size}B"


def echo(size, connections):
    return Workload(f"echo-{label(size)}-{connections}c",
                    f"{size} bytes sent back, {connections} connections",
                    load=["--size", size, "--connections", connections])


def http(size, connections, name, what, of=0):
    return Workload(name, what, service=("body", size), bytes=of,
                    load=["--http", "--size", size, "--connections", connections])


def bulk_send(size, connections):
    return http(size, connections, f"bulk-send-{label(size)}-{connections}c",
                f"GET with keep-alive, {label(size)} from memory, {connections} connections", size)


def bulk_receive(size, connections):
    return Workload(f"bulk-recv-{label(size)}-{connections}c",
                    f"{label(size)} received, one byte back, {connections} connections",
                    service=("answer", size, 1, 1), bytes=size,
                    load=["--size", size, "--answer", 1, "--connections", connections])


def handshake(name, what, extra, cert="ecdsa"):
    return Workload(name, f"connect, {what}, one GET of 64 bytes, close; 16 at a time",
                    service=("body", 64), cert=cert,
                    load=["--http", "--handshakes", "--size", 64, "--connections", 16] + extra)


def idle(connections):
    return Workload(f"idle-{connections}",
                    f"memory for each of {connections:,} connections after one GET each",
                    figure="pss_bytes", kind="idle", service=("body", 64),
                    load=["--http", "--idle", "--size", 64, "--first", IDLE_FIRST,
                          "--connections", IDLE_FIRST + connections])


def storm(cert):
    return Workload(f"storm-{cert}",
                    f"an established echo beside full handshakes ({cert}), {STORM_BURST} at a "
                    "time; together 70 % load", figure="p99_us", kind="beside", cert=cert,
                    load=["--connections", 64],
                    beside=["--handshakes", "--connections", 4 * STORM_BURST, "--burst",
                            STORM_BURST])


WORKLOADS = [
    *(echo(size, connections) for size in (64, 1024) for connections in (1, 64, 512, 4096)),
    Workload("small-writes-64c", "64 bytes answered by eight writes of 100, 64 connections",
             service=("answer", 64, 8, 100), load=["--answer", 800]),
    Workload("pipeline-64B-64c", "16 messages of 64 bytes at once, each sent back, 64 connections; "
             "an operation is one message", load=["--pipeline", 16]),
    *(make(size, connections) for make in (bulk_send, bulk_receive)
      for size in (16 << 10, 64 << 10, 1 << 20) for connections in (1, 16)),
    handshake("hs-full-tls13", "full TLS 1.3 handshake", []),
    handshake("hs-resumed-tls13", "TLS 1.3 handshake resumed by ticket", ["--resume"]),
    handshake("hs-full-tls12", "full TLS 1.2 handshake", ["--tls12"]),
    handshake("hs-resumed-tls12", "TLS 1.2 handshake resumed by ticket", ["--tls12", "--resume"]),
    handshake("hs-full-tls13-rsa2048", "full TLS 1.3 handshake, RSA-2048", [], "rsa2048"),
    http(64, 64, "http-64B-64c", "GET with keep-alive, body of 64 bytes, 64 connections"),
    Workload("accept-close", "connect, close without a byte; 16 at a time",
             load=["--accept-close", "--connections", 16]),
    idle(2000),
    idle(10000),
    storm("ecdsa"),
    storm("rsa2048"),
    storm("rsa4096"),
    Workload("flood-keyupdate", f"one good client's echo beside {FLOOD_PEERS} peers that flood "
             "KeyUpdate", figure="p99_us", kind="beside", load=["--connections", 1],
             beside=["--connections", FLOOD_PEERS]),
    Workload("bulk-by-others", "one good client's echo beside 8 connections that echo 64K",
             figure="p99_us", kind="beside", load=["--connections", 1],
             beside=["--size", 65536, "--connections", 8]),
]

# What `./run bench ablate` measures its variants by.
ABLATION = ["echo-64B-64c", "echo-1K-64c", "small-writes-64c", "bulk-send-64K-16c",
            "bulk-recv-64K-16c", "hs-full-tls13", "idle-2000", "flood-keyupdate", "storm-rsa2048"]


def find(name):
    return next((w for w in WORKLOADS if w.name == name), None)

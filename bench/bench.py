#!/usr/bin/env python3
"""Measures libbio_uring's server beside others, in turns, on this machine.

Method, in short (docs/performance.md has the reasons): the server is pinned to one
CPU and the load to another; every contender gets the same certificate, cipher,
allocator settings and congestion control; rounds are interleaved (A B C A B C ...),
and a ratio is taken within each round, so that whatever slows the machine for a while
slows all of them. The load reads the server's CPU time (user and system, all threads,
the scheduler's nanoseconds) at the two ends of the measured window.

`ablate` instead of workloads compares ours with itself, one design decision switched
off at a time; workloads may follow it.
"""

import argparse
import datetime
import os
import signal
import sys
import tempfile

from contenders import BASELINES, PEERS, QUICK, ablation_names, all_contenders, variants
from machine import Children
from measure import Bench, say
from plot import write_plots
from report import report
from workloads import ABLATION, WORKLOADS, find

EXIT_CODES = """
exit codes:
  0    everything asked for was measured (peers that are not installed are left out by
       --peers alone without changing this)
  1    something was left out or failed: the report says what; the rest was measured
  2    the command line cannot be understood
  3    nothing could be measured
  130  interrupted; nothing is reported
"""


def parse(words):
    parser = argparse.ArgumentParser(
        prog="run bench", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="workloads:\n" + "\n".join(f"  {w.name:22} {w.what}" for w in WORKLOADS) +
        "\n\ncontenders: " + ", ".join(all_contenders("")) + "\n" + EXIT_CODES)
    parser.add_argument("workload", nargs="*", help="which (default: all), or 'ablate'")
    parser.add_argument("--build", required=True, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--ablation-build", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true",
                        help="every workload once, briefly, with the main contenders only")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 5, with --quick 1")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="measured in each round; default 1.5, with --quick 0.3")
    parser.add_argument("--json", metavar="FILE", help="write everything, rounds too, to FILE")
    parser.add_argument("--plot", metavar="DIR", help="write SVG charts into DIR")
    parser.add_argument("--profile", action="store_true",
                        help="also where each server's CPU time goes, with perf")
    parser.add_argument("--contenders", metavar="A,B,...",
                        help="the first is compared with the others; default: " +
                        ",".join(BASELINES))
    parser.add_argument("--peers", metavar="=A,B,...", nargs="?", const="",
                        help="also real servers, those that are installed or those named: " +
                        ", ".join(PEERS))
    parser.add_argument("--cpus", metavar="S,L", help="CPU of the server and of the load")
    parser.add_argument("--port", type=int, default=0, metavar="N",
                        help="where servers listen (default: any free port)")
    # A bare --peers must not take a workload's name for its value.
    a = parser.parse_args(["--peers=" if word == "--peers" else word for word in words])
    a.rounds = a.rounds if a.rounds is not None else 1 if a.quick else 5
    a.seconds = a.seconds if a.seconds is not None else 0.3 if a.quick else 1.5
    a.warm_up = 0.1 if a.quick else 0.25
    if a.rounds < 1 or a.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if not 0 <= a.port < 65536:
        parser.error("--port must be between 1 and 65535")
    if a.cpus:
        try:
            a.cpus = [int(cpu) for cpu in a.cpus.split(",")]
        except ValueError:
            a.cpus = []
        if len(a.cpus) != 2:
            parser.error("--cpus wants two numbers, such as 0,1")
    check_writable(parser, a)
    a.ablate = a.workload[:1] == ["ablate"]
    if a.ablate:
        a.workload = a.workload[1:]
    return a


def check_writable(parser, a):
    """Before an hour of measuring, not after."""
    try:
        if a.json:
            open(a.json, "a").close()
        if a.plot:
            os.makedirs(a.plot, exist_ok=True)
    except OSError as error:
        parser.error(str(error))


def wanted_names(a):
    """[(name, whether its absence is a failure)]"""
    default = ["all", *ablation_names()] if a.ablate else QUICK if a.quick else BASELINES
    names = [(name, True) for name in (a.contenders.split(",") if a.contenders else default)]
    if a.peers is not None and not a.ablate:
        names += [(name, bool(a.peers)) for name in (a.peers.split(",") if a.peers else PEERS)]
    return names


def choose_contenders(a):
    """(contenders, [(what is left out, whether that is a failure)])"""
    known = variants(a.ablation_build or a.build) if a.ablate else all_contenders(a.build)
    chosen, absent = {}, []
    for name, failure in wanted_names(a):
        if name not in known:
            absent.append((f"contender '{name}': unknown; there are {', '.join(known)}", True))
        elif known[name].missing():
            absent.append((f"contender '{name}': {known[name].missing()}", failure))
        else:
            chosen[name] = known[name]
    return chosen, absent


def measure_all(bench, a):
    results = []
    default = ABLATION if a.ablate else [w.name for w in WORKLOADS]
    for number, name in enumerate(a.workload or default):
        workload = find(name)
        if not workload:
            bench.leave_out(f"workload '{name}': unknown; './run bench --help' lists them")
            continue
        say(f"[{number + 1}/{len(a.workload or default)}]", end=" ")
        result = bench.measure(workload)
        if result["contenders"]:
            results.append(result)
    return results


def main():
    a = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    contenders, absent = choose_contenders(a)
    with tempfile.TemporaryDirectory(prefix="bio_uring-bench-") as directory:
        children = Children(directory)
        try:
            bench = Bench(a, children, contenders)
            bench.started = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
            for what, failure in absent:
                bench.leave_out(what, failure)
            results = measure_all(bench, a) if contenders else []
        except KeyboardInterrupt:
            say("bench: interrupted")
            return 130
        finally:
            children.stop_all()
        document = report(bench, results, "ablate" if a.ablate else "compare")
        if a.plot:
            for path in write_plots(document, a.plot):
                say(f"wrote {path}")
    if not results:
        say("bench: nothing was measured")
        return 3
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""./run bench: its JSON, its charts, its ablation switches, and what it says to bad input.

Runs last a fifth of a second: they show that everything works, not how fast.
"""

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import xml.etree.ElementTree as tree

from harness import SOURCE, Case, main, run

BENCH = os.path.join(SOURCE, "bench")
BRIEF = ("--quick", "--seconds", "0.2")  # a busy machine lets 0.05 pass without an operation

sys.path.insert(0, BENCH)
import contenders  # noqa: E402
import workloads   # noqa: E402


def bench(*arguments, before=(), **more):
    return run(*before, sys.executable, os.path.join(BENCH, "bench.py"), "--build",
               os.environ["BENCH_BUILD"], *map(str, arguments), **more)


def filled(result, folder):
    """docs/performance.md with the tables of this result."""
    path = os.path.join(folder, "performance.md")
    shutil.copy(os.path.join(SOURCE, "docs", "performance.md"), path)
    done = run(sys.executable, os.path.join(BENCH, "tables.py"), path, result)
    with open(path, encoding="utf-8") as file:
        return done, file.read()


class BenchCase(Case):
    def measured(self, *arguments, code=0):
        """A run that writes JSON: the document and what was printed."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.json")
            done = bench(*BRIEF, "--json", path, *arguments)
            self.assertEqual(done.code, code, str(done))
            self.tables, self.document = filled(path, folder)
            with open(path, encoding="utf-8") as file:
                return json.load(file), done


class Results(BenchCase):
    def check_contender(self, values):
        for key in ("cpu_us", "rate", "p50_us", "p99_us"):
            self.assertGreater(values[key], 0, key)
        self.assertLessEqual(values["p50_us"], values["p99_us"])

    def test_json_and_plots(self):
        with tempfile.TemporaryDirectory() as folder:
            document, done = self.measured("echo-64B-1c", "small-writes-64c", "--rounds", "2",
                                           "--plot", folder)
            charts = os.listdir(folder)
            for chart in charts:
                words = "".join(tree.parse(os.path.join(folder, chart)).getroot().itertext())
                self.assertIn("echo-64B-1c", words)
        self.assertEqual(charts, ["echo.svg"])
        self.assertEqual([w["name"] for w in document["workloads"]],
                         ["echo-64B-1c", "small-writes-64c"])
        for workload in document["workloads"]:
            for name in ("ours", "epoll-best", "plain-uring"):
                self.check_contender(workload["contenders"][name])
                self.assertEqual(len(workload["contenders"][name]["rounds"]), 2)
            self.assertGreater(workload["ratio"]["epoll-best"], 0)
            self.assertGreaterEqual(workload["spread"]["epoll-best"], 0)
            self.assertIn("epoll-best", workload["unclear"])  # two rounds say nothing
            floor = sum(workload["contenders"][name]["cpu_us"]
                        for name in ("plain-uring", "libssl-memory"))
            self.assertAlmostEqual(workload["floor_us"], floor, places=2)
        self.assertIn("epoll-bio-buffer", document["workloads"][1]["contenders"])
        for key in ("cpu", "kernel", "openssl", "server_cpu", "load_cpu"):
            self.assertIn(key, document["machine"])
        self.assertIn(b"UNCLEAR: too few rounds", done.out)
        self.assertEqual(self.tables.code, 0, str(self.tables))
        for workload in document["workloads"]:
            self.assertRegex(self.document, rf"\| `{workload['name']}` \| [0-9.]+ \|")

    def test_memory_and_others(self):
        document, _ = self.measured("bulk-by-others", "hs-resumed-tls13", "--contenders",
                                    "ours,epoll-best")
        beside, resumed = document["workloads"]
        self.assertEqual(beside["figure"], "p99_us")
        for values in beside["contenders"].values():
            self.assertGreater(values["p99_us"], 0)
            self.assertGreater(values["beside_rate"], 0)
        self.check_contender(resumed["contenders"]["ours"])


class BadInput(BenchCase):
    def test_unknown_names(self):
        document, done = self.measured("nosuch-1c", "echo-64B-1c", "--contenders",
                                       "ours,nosuch", "--peers=apache", code=1)
        for line in (b"left out: workload 'nosuch-1c': unknown; './run bench --help' lists them",
                     b"left out: contender 'nosuch': unknown; there are ours, ",
                     b"left out: contender 'apache': unknown; there are ours, "):
            self.assertIn(line, done.out)
        self.assertEqual(len(document["left_out"]), 3)
        self.assertEqual([w["name"] for w in document["workloads"]], ["echo-64B-1c"])

    def test_nothing_to_measure(self):
        done = bench(*BRIEF, "nosuch")
        self.assertEqual(done.code, 3, str(done))
        self.assertIn(b"nothing was measured", done.err)

    def test_command_line(self):
        for words in (("--rounds", "0"), ("--nosuch",), ("--cpus", "a,b"), ("--port", "70000"),
                      ("--json", "/nonexistent/x.json")):
            done = bench(*words, "echo-64B-1c")
            self.assertEqual(done.code, 2, str(done))

    def test_missing_cpu(self):
        _, done = self.measured("echo-64B-1c", "--contenders", "ours", "--cpus", "0,9999", code=1)
        self.assertRegex(done.out, rb"left out: CPU 9999: this process may use [0-9, ]+ only")

    def test_one_cpu(self):
        done = bench(*BRIEF, "echo-64B-1c", "--contenders", "ours", before=("taskset", "-c", "0"))
        self.assertEqual(done.code, 0, str(done))
        self.assertIn(b"note: one CPU only", done.out)

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            done = bench(*BRIEF, "echo-64B-1c", "--contenders", "ours,epoll-best", "--port",
                         taken.getsockname()[1])
        self.assertEqual(done.code, 3, str(done))
        refused = re.findall(rb"^left out: echo-64B-1c, .*in use", done.out, re.M | re.I)
        self.assertEqual(len(refused), 2, str(done))

    def test_kernel_without_io_uring(self):
        done = bench(*BRIEF, "echo-64B-1c", "--contenders", "epoll-best",
                     before=(os.environ["DENY_URING"], "enosys"))
        if done.code == 77:
            self.skipTest(done.err.decode().strip())
        self.assertEqual(done.code, 3, str(done))
        self.assertIn(b"the load needs io_uring", done.out)


class Lists(BenchCase):
    def test_ablations_exist(self):
        """Each is a switch of bench-ours, a variable or a name in src/ablation.c, and each name
        there is used."""
        with open(os.path.join(SOURCE, "src", "ablation.c"), encoding="utf-8") as file:
            names = set(re.findall(r'"([a-z-]+)"', file.read().split("names[]")[1].split("}")[0]))
        self.assertEqual(names, {n for n, (_, how) in contenders.ABLATIONS.items() if not how})
        usage = run(os.path.join(os.environ["BENCH_BUILD"], "bench", "bench-ours"), "--help").out
        switches = [how for _, how in contenders.ABLATIONS.values() if how and how[0] == "-"]
        self.assertGreater(len(switches), 3)
        for switch in switches:
            self.assertIn(switch.encode() + b" ", usage)

    def test_help_lists_every_workload(self):
        text = bench("--help").out.decode()
        for workload in workloads.WORKLOADS:
            self.assertIn(f"  {workload.name} ", text)
        for name in workloads.ABLATION:
            self.assertTrue(workloads.find(name), name)


main()

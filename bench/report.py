"""The report: a table in the terminal, JSON."""

import json
import os
import platform
import subprocess

from contenders import ABLATIONS
from machine import cpu_model

# (key, heading, format); shown where a contender has it.
COLUMNS = [("cpu_us", "CPU us/op", "{:.2f}"), ("cpu_us_per_mb", "us/MB", "{:.0f}"),
           ("rate", "op/s", "{:.0f}"), ("p50_us", "p50 us", "{:.1f}"),
           ("p99_us", "p99 us", "{:.1f}"),
           ("syscalls", "calls/op", "{:.2f}"), ("server_busy", "CPU used", "{:.0%}"),
           ("beside_rate", "beside/s", "{:.0f}"), ("late_share", "late", "{:.0%}"),
           ("pss_bytes", "PSS B/conn", "{:.0f}"), ("pss_kept_bytes", "after close", "{:.0f}"),
           ("kernel_bytes", "kernel B", "{:.0f}")]

# Compared in the JSON only: they are not TLS servers.
FLOOR_PARTS = ("plain-epoll", "plain-uring", "libssl-memory")

METHOD_NOTES = [
    "real networks: everything goes over loopback",
    "kernel B (idle-*): the growth of the whole machine's slab, both ends of each connection",
    "late (storm-*): messages that were due and could not be sent, because the server held all "
    "connections; they are not in the latency",
    "beside/s: handshakes (storm-*) or echoes of 64K (bulk-by-others) that the others completed",
]


def describe_machine(bench):
    version = subprocess.run([bench.load, "--version"], capture_output=True, text=True, check=False)
    return {"cpu": cpu_model(), "cpus": os.cpu_count(), "server_cpu": bench.server_cpu,
            "load_cpu": bench.load_cpu, "kernel": platform.release(),
            "openssl": version.stdout.strip(), "libc": " ".join(platform.libc_ver()),
            "peers": peer_versions(bench), "syscalls_with": bench.syscalls.tool,
            "load_average_before": round(bench.load_average, 2)}


def peer_versions(bench):
    """What each says of itself, first line."""
    ask = {"nginx": "-v", "haproxy": "-v", "hitch": "--version", "stunnel": "-version"}
    found = {}
    for name, contender in bench.contenders.items():
        if name in ask:
            done = subprocess.run([contender.program, ask[name]], capture_output=True, text=True,
                                  check=False)
            found[name] = ((done.stdout + done.stderr).strip().splitlines() or ["?"])[0]
    return found


def machine_line(machine):
    return (f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, "
            f"{machine['openssl']}")


def comparison(result, name):
    low, high = result["range"][name]
    line = f"  {result['subject']} / {name} = {result['ratio'][name]:.3f}  " \
           f"(rounds {low:.3f} to {high:.3f})"
    if name not in result["unclear"]:
        return line
    rounds = len(result["contenders"][result["subject"]]["rounds"])
    return line + ("  UNCLEAR: too few rounds to know the spread" if rounds < 3 else
                   "  UNCLEAR: the spread is larger than the difference")


def table(result):
    contenders = result["contenders"]
    columns = [c for c in COLUMNS if any(c[0] in values for values in contenders.values())]
    lines = [f"{result['name']}: {result['what']}"]
    lines.append("  " + " " * 17 + "".join(f"{heading:>12}" for _, heading, _ in columns))
    for name, values in contenders.items():
        lines.append(f"  {name:17}" + "".join(
            f"{form.format(values[key]) if key in values else '':>12}" for key, _, form in columns))
    lines += [comparison(result, name) for name in result["ratio"] if name not in FLOOR_PARTS]
    for name, values in contenders.items():
        if "profile" in values:
            lines.append(f"  time of {name}: " + ", ".join(
                f"{part} {share:.0%}" for part, share in values["profile"].items()))
    if result["floor_us"]:
        lines.append(f"  floor (plain-uring + libssl-memory) {result['floor_us']:.2f} us: "
                     f"{result['subject']} is at {result['floor_ratio'] or 0:.2f} of it")
    if (result["others_cpu"] or 0) > 0.05:
        lines.append(f"  the machine was not quiet: others used {result['others_cpu']:.0%} "
                     "of both CPUs")
    return "\n".join(lines)


def ablation_table(results):
    """Rows: what was switched off. Columns: workloads. Cells: how much the figure grew."""
    names = [r["name"] for r in results]
    variants = [name for name in (results[0]["contenders"] if results else {}) if name != "all"]
    heads = [name.rsplit("-", 1) for name in names]  # in two lines
    lines = ["without".ljust(17) + "".join(f"{head[0]:>14}" for head in heads),
             " " * 17 + "".join(f"{head[-1]:>14}" for head in heads)]
    for variant in variants:
        cells = []
        for r in results:
            ratio = r["ratio"].get(variant)
            mark = " ?" if variant in r["unclear"] else "  "
            cells.append(f"{(1 / ratio - 1) * 100:+.1f} %{mark}" if ratio else "-  ")
        lines.append(variant.ljust(17) + "".join(f"{cell:>14}" for cell in cells))
    lines += ["without means:", *(f"  {name:16} {ABLATIONS[name][0]}" for name in variants)]
    lines.append("(how much the workload's main figure grows when only this is switched off; "
                 "? = the rounds lie further apart than that)")
    return "\n".join(lines)


def document_of(bench, machine, results, mode):
    a = bench.arguments
    return {
        "started": bench.started, "mode": mode, "machine": machine,
        "method": {"rounds": a.rounds, "seconds": a.seconds, "warm_up": a.warm_up,
                   "quick": a.quick, "interleaved": True,
                   "congestion_control": "cubic on both ends, unless a note says otherwise",
                   "cipher": "TLS_AES_128_GCM_SHA256, ECDHE-*-AES128-GCM-SHA256; X25519",
                   "cpu_time": "process CPU clock (scheduler, nanoseconds), user and system, "
                               "all threads and processes of the server",
                   "ratio": "median over rounds of subject / contender within the round, of the "
                            "workload's main figure",
                   "spread": "largest minus smallest of those",
                   "floor_us": "cpu_us of plain-uring and of libssl-memory together"},
        "variants": {n: ABLATIONS[n][0] for n in bench.contenders if n in ABLATIONS},
        "workloads": results, "notes": bench.notes, "left_out": bench.left_out,
        "remarks": METHOD_NOTES,
    }


def report(bench, results, mode):
    machine = describe_machine(bench)
    document = document_of(bench, machine, results, mode)
    print(f"\n{machine_line(machine)}; server on CPU {machine['server_cpu']}, load on CPU "
          f"{machine['load_cpu']}; cubic congestion control; {bench.arguments.rounds} interleaved "
          f"rounds of {bench.arguments.seconds:g} s; medians\n")
    for result in results:
        print(table(result) + "\n")
    if mode == "ablate" and results:
        print(ablation_table(results) + "\n")
    for note in bench.notes:
        print(f"note: {note}")
    for what in bench.left_out:
        print(f"left out: {what}")
    for remark in METHOD_NOTES:
        print(f"remark: {remark}")
    if bench.arguments.json:
        with open(bench.arguments.json, "w") as f:
            json.dump(document, f, indent=1)
            f.write("\n")
    return document

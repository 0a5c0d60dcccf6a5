#!/usr/bin/env python3
"""Puts measured tables into a document, so that no figure there is typed by hand.

    python3 bench/tables.py DOCUMENT RESULT.json...

RESULT.json are of `./run bench --json` and `./run bench ablate --json`. Text between the lines
`<!-- bench NAME -->` and `<!-- end -->` is replaced; NAME is one of run, ratios, latency, memory,
profile (of a comparison), ablation-run, ablation (of an ablation). A block without a result for it
stays as it is.
"""

import json
import re
import sys

from contenders import ABLATIONS
from report import FLOOR_PARTS, machine_line


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value):
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(result, name):
    """With its smallest and largest round; in brackets where it says nothing."""
    if name not in result["ratio"]:
        return ""
    low, high = result["range"][name]
    text = f"{result['ratio'][name]:.2f} ({low:.2f} to {high:.2f})"
    return f"[{text}]" if name in result["unclear"] else text


def run(document):
    machine, method = document["machine"], document["method"]
    peers = "".join(f"; {version}" for version in machine["peers"].values())
    left_out = "".join(f"\nLeft out: {what}." for what in document["left_out"])
    return (f"{document['started'][:10]}: {machine_line(machine)}{peers}; {method['rounds']} "
            f"interleaved rounds of {method['seconds']:g} s; medians. A ratio is followed by its "
            "smallest and largest round; in [brackets] the rounds lie further apart than the "
            f"difference, so it says nothing.{left_out}")


def compared(document):
    names = {name for w in document["workloads"] for name in w["ratio"]} - set(FLOOR_PARTS)
    order = [name for w in document["workloads"] for name in w["ratio"]]
    return sorted(names, key=order.index)


def ratios(document):
    names = compared(document)
    rows = []
    for w in document["workloads"]:
        if w["figure"] != "cpu_us" or not w["subject"]:
            continue
        ours = w["contenders"][w["subject"]]
        floor = f"{w['floor_ratio']:.2f}" if w["floor_ratio"] else ""
        rows.append([f"`{w['name']}`", number(ours["cpu_us"]), floor,
                     *(ratio(w, n) for n in names)])
    return table(["workload", "ours, CPU us", "x floor", *names], rows)


def latency(document):
    rows = []
    for w in document["workloads"]:
        if w["figure"] == "p99_us":
            rows += [[f"`{w['name']}`", name, number(c["p50_us"]), number(c["p99_us"]),
                      number(c.get("beside_rate")),
                      f"{c['late_share']:.0%}" if "late_share" in c else "", ratio(w, name)]
                     for name, c in w["contenders"].items()]
    return table(["workload", "contender", "p50 us", "p99 us", "beside/s", "late",
                  "ours / it, p99"], rows)


def memory(document):
    rows = []
    for w in document["workloads"]:
        if w["figure"] == "pss_bytes":
            rows += [[f"`{w['name']}`", name, number(c["pss_bytes"]), number(c["pss_kept_bytes"]),
                      number(c["kernel_bytes"]), ratio(w, name)]
                     for name, c in w["contenders"].items()]
    return table(["workload", "contender", "PSS, bytes a connection", "kept after close",
                  "kernel, both ends", "ours / it"], rows)


def profile(document):
    found = [(w["name"], name, c["profile"]) for w in document["workloads"]
             for name, c in w["contenders"].items() if "profile" in c]
    parts = sorted({part for _, _, shares in found for part in shares})
    return found and table(["workload", "contender", *parts],
                           [[f"`{w}`", name, *(f"{shares.get(part, 0):.0%}" for part in parts)]
                            for w, name, shares in found])


def growth(result, name):
    if name not in result["ratio"]:
        return ""
    text = f"{(1 / result['ratio'][name] - 1) * 100:+.0f} %"
    return f"[{text}]" if name in result["unclear"] else text


def ablation(document):
    return table(["without", "then", *(f"`{w['name']}`" for w in document["workloads"])],
                 [[name, ABLATIONS[name][0], *(growth(w, name) for w in document["workloads"])]
                  for name in document["variants"] if name in ABLATIONS])


BLOCKS = {"compare": {"run": run, "ratios": ratios, "latency": latency, "memory": memory,
                      "profile": profile},
          "ablate": {"ablation-run": run, "ablation": ablation}}


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__.strip())
    with open(sys.argv[1]) as f:
        text = f.read()
    for path in sys.argv[2:]:
        with open(path) as f:
            document = json.load(f)
        for name, make in BLOCKS[document["mode"]].items():
            made = make(document)
            if made:
                text = re.sub(rf"(<!-- bench {name} -->\n).*?(<!-- end -->)",
                              lambda m, made=made: m[1] + made + "\n" + m[2], text, flags=re.S)
    with open(sys.argv[1], "w") as f:
        f.write(text)


if __name__ == "__main__":
    main()

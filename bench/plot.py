"""SVG bar charts of a result, without any library.

    python3 bench/plot.py RESULT.json DIR      from an earlier --json
"""

import json
import math
import os
import sys
from xml.sax.saxutils import escape

from report import FLOOR_PARTS, machine_line

COLOURS = {"ours": "#c0392b", "all": "#c0392b", "epoll-best": "#2c3e50", "epoll-nginx": "#7f8c8d",
           "epoll-bio-buffer": "#34699a", "threads": "#b7950b", "nginx": "#27ae60",
           "haproxy": "#8e44ad", "hitch": "#16a085", "stunnel": "#d35400", "floor": "#bdc3c7"}
OTHER = "#95a5a6"
BAR, GAP, LEFT, WIDTH, TOP = 13, 12, 190, 900, 58

# file, title, which workloads, which value
CHARTS = [
    ("echo", "Echo: server CPU per message", ("echo-", "pipeline-", "small-"), "cpu_us", "us"),
    ("bulk", "Bulk: server CPU per megabyte", ("bulk-send", "bulk-recv"), "cpu_us_per_mb", "us"),
    ("handshakes", "Connections: server CPU per connection", ("hs-", "accept-"), "cpu_us", "us"),
    ("http", "HTTP keep-alive: server CPU per request", ("http-",), "cpu_us", "us"),
    ("memory", "Idle connections: memory of the process", ("idle-",), "pss_bytes", "bytes"),
    ("latency", "A good client's 99th percentile beside others", ("storm-", "flood-", "bulk-by-"),
     "p99_us", "us, logarithmic"),
]


def shown(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def rows_of(document, prefixes, key):
    """[(workload, [(contender, value)])]"""
    rows = []
    for result in document["workloads"]:
        if not result["name"].startswith(prefixes):
            continue
        bars = [(name, values[key]) for name, values in result["contenders"].items()
                if key in values and name not in FLOOR_PARTS]
        if key == "cpu_us" and result["floor_us"]:
            bars.append(("floor", result["floor_us"]))
        if bars:
            rows.append((result["name"], bars))
    return rows


def bar(x, y, width, name, value):
    colour = COLOURS.get(name, OTHER)
    return (f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>'
            f'<text x="{x + width + 5:.1f}" y="{y + BAR - 4}">{escape(name)} {shown(value)}</text>')


def scale_of(rows, logarithmic):
    """A function from a value to a width. Each workload has its own scale, unless it is
    logarithmic: their sizes differ by far more than a picture can show."""
    room = WIDTH - LEFT - 170
    top = max(value for _, bars in rows for _, value in bars)
    if logarithmic:
        low = math.log10(max(1, min(v for _, bars in rows for _, v in bars)) / 2)
        span = math.log10(max(top, 2)) - low
        return lambda value, _: room * (math.log10(max(value, 1)) - low) / span
    return lambda value, bars: room * value / max(v for _, v in bars)


def chart(title, unit, rows, footer):
    scale = scale_of(rows, "logarithmic" in unit)
    parts, y = [], TOP
    for name, bars in rows:
        middle = y + len(bars) * BAR / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">'
                     f'{escape(name)}</text>')
        for contender, value in bars:
            parts.append(bar(LEFT, y, max(1.0, scale(value, bars)), contender, value))
            y += BAR
        y += GAP
    height = y + 24
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="11" '
            'fill="#222">'
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
            f'<text x="16" y="24" font-size="16" font-weight="bold">{escape(title)}</text>'
            f'<text x="16" y="42" fill="#666">{escape(unit)}; shorter is better; each workload has '
            'its own scale</text>')
    if "logarithmic" in unit:
        head = head.replace("; each workload has its own scale", "")
    tail = f'<text x="16" y="{height - 10}" fill="#666">{escape(footer)}</text></svg>\n'
    return "\n".join([head, *parts, tail])


def ablation_rows(document):
    rows = []
    for result in document["workloads"]:
        bars = [(name, 1 / ratio) for name, ratio in result["ratio"].items()]
        if bars:
            rows.append((result["name"], [("all", 1.0), *bars]))
    return rows


def write_plots(document, directory):
    """The paths written."""
    os.makedirs(directory, exist_ok=True)
    method = document["method"]
    footer = (f"{machine_line(document['machine'])}; medians of {method['rounds']} rounds of "
              f"{method['seconds']:g} s; {document['started'][:10]}")
    charts = [(name, title, unit, rows_of(document, prefixes, key))
              for name, title, prefixes, key, unit in CHARTS]
    if document["mode"] == "ablate":
        charts = [("ablation", "One design decision switched off at a time",
                   "main figure relative to all switched on", ablation_rows(document))]
    written = []
    for name, title, unit, rows in charts:
        if rows:
            path = os.path.join(directory, f"{name}.svg")
            with open(path, "w") as f:
                f.write(chart(title, unit, rows, footer))
            written.append(path)
    return written


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    with open(sys.argv[1]) as f:
        for path in write_plots(json.load(f), sys.argv[2]):
            print(path)


if __name__ == "__main__":
    main()

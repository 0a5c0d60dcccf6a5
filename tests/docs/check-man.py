#!/usr/bin/env python3
"""Every UM_API function has a man page with something in it, and no page is left over.

    check-man.py PAGES-DIRECTORY SUMMARIES HEADER...

Counts the functions by itself, not with make-man.py. Uses man(1) and mandoc(1) to check the
formatting where they are installed.
"""

import glob
import os
import re
import shutil
import subprocess
import sys

NEEDED = {"3": ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"),
          "7": ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO")}
problems = []


def check(condition, message):
    if not condition:
        problems.append(message)


def read(path):
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def functions(headers):
    names = set()
    for path in headers:
        code = re.sub(r"/\*.*?\*/", "", read(path), flags=re.S)
        for declaration in re.findall(r"^UM_API ([^;]*);", code, re.M):
            names.add(re.match(r"[^(]*?(\w+)\(", declaration).group(1))
    return names


def sections(text):
    """{title: words in it} of a page."""
    found, title = {}, None
    for line in text.splitlines():
        if line.startswith(".SH "):
            title = line[4:]
            found[title] = []
        elif title and not re.match(r"\.(PP|nf|fi|in)\b", line):
            found[title] += re.sub(r"^\.[A-Z]+ |\\f.", "", line).split()
    return found


def check_page(path):
    name, number = os.path.basename(path).rsplit(".", 1)
    text = read(path)
    parts = sections(text)
    for title in NEEDED[number]:
        check(parts.get(title), f"{path}: no {title}")
    words = parts.get("DESCRIPTION", [])
    check(len(words) >= 4, f"{path}: DESCRIPTION says nothing: {' '.join(words)}")
    line = " ".join(parts.get("NAME", [])).replace("\\-", "-")
    check(re.fullmatch(re.escape(name) + r" - \S.{5,90}", line), f"{path}: bad NAME line: {line}")
    check("/*" not in text or number == "7", f"{path}: a comment was left in")
    for link, section in re.findall(r"^\.BR ([\w\\-]+) \(([37])\),?$", text, re.M):
        target = os.path.join(os.path.dirname(path), f"{link}.{section}")
        check(os.path.exists(target), f"{path}: refers to {link}({section}), which has no page")


def check_format(paths):
    """What the formatters complain about."""
    if shutil.which("mandoc"):
        done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", *paths], text=True,
                              capture_output=True)
        # The pages bear no date, so that building twice gives the same bytes.
        lines = [l for l in done.stdout.splitlines() if "missing date" not in l]
        check(not lines, "mandoc: " + "\n".join(lines[:20]))
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", *paths], text=True,
                              capture_output=True)
        check(not done.stderr, "groff: " + done.stderr[:2000])


def main(directory, summaries, *headers):
    wanted = functions(headers)
    check(len(wanted) > 100, f"only {len(wanted)} functions were found in the headers")
    paths = sorted(glob.glob(os.path.join(directory, "*.[37]")))
    pages = {os.path.basename(p)[:-2] for p in paths if p.endswith(".3")}
    for name in sorted(wanted - pages):
        check(False, f"{name} has no page")
    for name in sorted(pages - wanted):
        check(False, f"{name}.3 describes no function")
    overviews = {os.path.basename(p)[:-2] for p in paths if p.endswith(".7")}
    check(len(overviews) == len(headers), f"{len(overviews)} overviews of {len(headers)} headers")
    described = [line.split(":")[0] for line in read(summaries).splitlines()
                 if line and not line.startswith("#")]
    for name in described:
        check(name in wanted | overviews, f"{summaries}: {name} does not exist")
    for path in paths:
        check_page(path)
    check_format(paths)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(pages)} functions, {len(overviews)} overviews, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

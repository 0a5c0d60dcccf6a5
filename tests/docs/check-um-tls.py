#!/usr/bin/env python3
"""um-tls(1) has the options, exit codes and variables that the program's help has, and no others.

    check-um-tls.py UM-TLS PAGE
"""

import re
import subprocess
import sys


def help_of(program, *command):
    return subprocess.run([program, *command, "--help"], check=True, capture_output=True,
                          text=True).stdout


def page_sections(path):
    """{title: text} of the .SH and .SS parts, without roff's escapes."""
    with open(path, encoding="utf-8") as stream:
        text = stream.read().replace("\\-", "-").replace("\\~", " ")
    parts = re.split(r"^\.S[HS] (.*)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def main(program, page):
    sections, wrong = page_sections(page), []

    def compare(what, said, written):
        for name in sorted(said ^ written):
            where = "the page lacks" if name in said else "only the page has"
            wrong.append(f"{what}: {where} {name}")

    for command in ("serve", "connect", "load"):
        said = set(re.findall(r"^  (--[\w-]+)", help_of(program, command), re.M)) - {"--help"}
        compare(command, said, set(re.findall(r"^\.(?:B|BI|BR) (--[\w-]+)",
                                              sections.get(command, ""), re.M)))
    said = set(re.findall(r"^ {2,3}(\d+)  ", help_of(program).partition("Exit codes:")[2], re.M))
    compare("exit codes", said, set(re.findall(r"^\.B (\d+)$", sections["EXIT STATUS"], re.M)))
    said = set(re.findall(r"^  ([A-Z_]+)  ", help_of(program).partition("Environment:")[2], re.M))
    written = set(re.findall(r"^\.B ([A-Z_]+)$", sections["ENVIRONMENT"], re.M))
    compare("environment", said, written)
    print("\n".join(wrong) or "the page has what the help has")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

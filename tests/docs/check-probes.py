#!/usr/bin/env python3
"""The probes in the library are those of docs/observing.md, with as many arguments.

    check-probes.py LIBRARY DOCS
"""

import re
import shutil
import subprocess
import sys


def main(library, docs):
    if not shutil.which("readelf"):
        print("readelf is not installed")
        return 77
    notes = subprocess.run(["readelf", "-n", library], check=True, capture_output=True, text=True).stdout
    built = {name: len(arguments.split()) for name, arguments in re.findall(
        r"Provider: bio_uring\n\s+Name: (\w+)\n.*\n\s+Arguments: (.*)\n", notes)}
    if not built:
        print("the library was built without probes: sys/sdt.h was not there")
        return 77
    with open(docs, encoding="utf-8") as file:
        table = file.read().partition("| probe |")[2].partition("\n\n")[0]
    written = {name: arguments.count(",") + 1 for name, arguments in
               re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M)}
    if built == written:
        print(f"{len(built)} probes")
        return 0
    print(f"in the library: {sorted(built.items())}\nin the page:    {sorted(written.items())}")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

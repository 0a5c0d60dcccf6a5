#!/usr/bin/env python3
"""Sums up what `meson test` left in its log folder: "N passed, N failed, N skipped".

A program that reports its tests one by one (TAP) counts as so many tests, any other as one.
Exit code 1 if a test failed or none was counted.
"""

import json
import os
import sys
import xml.etree.ElementTree as tree

GOOD = {"OK", "EXPECTEDFAIL"}


def overall(folder):
    """How many programs ended in each way, by meson's own judgement."""
    bad = good = skipped = 0
    try:
        with open(os.path.join(folder, "testlog.json"), encoding="utf-8") as log:
            for line in log:
                result = json.loads(line)["result"]
                good += result in GOOD
                skipped += result == "SKIP"
                bad += result not in GOOD and result != "SKIP"
    except FileNotFoundError:
        pass
    return good, bad, skipped


def cases(folder):
    good = bad = skipped = 0
    try:
        root = tree.parse(os.path.join(folder, "testlog.junit.xml")).getroot()
    except FileNotFoundError:
        return 0, 0, 0
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            bad += 1
        elif "skipped" in kinds:
            skipped += 1
        else:
            good += 1
    return good, bad, skipped


def main():
    programs = overall(sys.argv[1])
    passed, failed, skipped = cases(sys.argv[1])
    # A program can fail without one of its tests failing: a crash, a leak found at its end.
    failed = max(failed, programs[1])
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return failed > 0 or passed == 0


sys.exit(main())

#!/usr/bin/env python3
"""Judges what testssl.sh found: scripts/testssl-judge.py REPORTS SKIPPED NAME...

Prints a table, and fails unless all are as they should be. SKIPPED: how many were not examined."""

import collections
import json
import os
import sys

SERVERS = {"ecdsa": "um-tls serve, ECDSA P-256", "rsa": "um-tls serve, RSA 2048",
           "ruby": "Ruby, UM::TLS::Server, ECDSA"}
BAD = ("MEDIUM", "HIGH", "CRITICAL")
FATAL = "FATAL"
# WARN is testssl.sh's own trouble, and says nothing about the server. Always: engine_problem, for
# there is no old OpenSSL with "engine" beside it. Now and then: sessionresumption_ticket, when
# openssl s_client has left before a ticket of TLS 1.3 came.
NOTE = "WARN"


def judge(reports, name):
    """One line of the table, and what is wrong."""
    try:
        with open(os.path.join(reports, name + ".json"), encoding="utf-8") as file:
            findings = json.load(file)
    except (OSError, ValueError) as problem:
        return [SERVERS[name], "none"] + 5 * [""], [f"no report: {problem}"]
    by_id = {finding["id"]: finding["finding"] for finding in findings}
    count = collections.Counter(f["severity"] for f in findings)
    trouble = [f"{f['severity']} {f['id']}: {f['finding']}" for f in findings
               if f["severity"] in BAD + (FATAL,)]
    rating = by_id.get("overall_grade", "none")
    if rating != "A+":
        trouble.append(f"rated {rating}, wanted is A+" +
                       "".join(f"; {f['finding']}" for f in findings if f["id"].startswith("grade_cap_reason")))
    if len(findings) < 100:
        trouble.append(f"only {len(findings)} things were looked at: did testssl.sh run to its end?")
    protocols = [shown for shown, id in (("TLS 1.2", "TLS1_2"), ("TLS 1.3", "TLS1_3"))
                 if by_id.get(id, "").startswith("offered")]
    line = [SERVERS[name], rating, ", ".join(protocols), str(len(findings)),
            str(count["LOW"] + count["INFO"] + count["OK"]), str(count[NOTE]),
            str(sum(count[s] for s in BAD))]
    return line, trouble


def main():
    reports, skipped, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    judged = [judge(reports, name) for name in names]
    rows = [["server", "rating", "speaks", "looked at", "good, or a remark", "not found out", "MEDIUM or worse"]]
    rows += [line for line, _ in judged]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for name, (_, trouble) in zip(names, judged):
        for text in trouble:
            print(f"{name}: {text}")
    failed = sum(bool(trouble) for _, trouble in judged)
    print(f"\nWanted: A+ and nothing MEDIUM or worse. All that was found: {reports}/*.txt")
    print(f"{len(judged) - failed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

#!/bin/sh
# Adds up the "N passed, N failed, N skipped" lines of its input.
# Fails if they tell of a failure or of no test at all.
awk '/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { passed += $1; failed += $3; skipped += $5 }
  END {
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit failed > 0 || passed == 0
  }'

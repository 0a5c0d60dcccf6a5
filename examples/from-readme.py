"""from-readme.py README.md OUTPUT.c: takes the C program out of the README, to compile it."""

import re
import sys

with open(sys.argv[1], encoding="utf-8") as readme:
    blocks = re.findall(r"^```c\n(.*?)^```", readme.read(), re.S | re.M)
if len(blocks) != 1:
    sys.exit(f"{sys.argv[1]}: {len(blocks)} C programs, one was expected")
with open(sys.argv[2], "w", encoding="utf-8") as program:
    program.write(blocks[0])

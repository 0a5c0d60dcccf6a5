#!/bin/sh
# lane: this machine, the way the README says
# needs: what ./run setup installs
exec "$(dirname "$0")/../../run" test

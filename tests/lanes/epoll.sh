#!/bin/sh
# lane: this machine without io_uring: all tests on the epoll backend
# needs: what ./run setup installs
export UM_BACKEND=epoll
exec "$(dirname "$0")/../../run" test

#!/bin/sh
# lane: testssl.sh against um-tls serve (ECDSA, RSA) and a Ruby server: A+, nothing MEDIUM or worse
# needs: Debian 12 or 13, or testssl.sh 3.2 installed; five minutes
exec "$(dirname "$0")/../../run" testssl

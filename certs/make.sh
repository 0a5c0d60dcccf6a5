#!/bin/sh
# Makes the certificates of the tests, the demo and the benchmarks; README.md lists them.
#
#   certs/make.sh [DIRECTORY]      default: build/certs
#
# Does nothing while those that are there stay valid for 30 days more.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
out=${1:-$here/../build/certs}

# Changes when what is made changes, so that an older set is made anew.
edition=1

current() {
  [ "$(cat "$out/edition" 2>/dev/null)" = "$edition" ] &&
    openssl x509 -in "$out/server.pem" -noout -checkend 2592000 >/dev/null 2>&1
}

current && exit 0

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Keys of a test are no secret, but tools warn about those that others can read.
umask 077

# OpenSSL's words only if it fails: it reports progress on stderr.
ssl() {
  openssl "$@" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
}

key_ec() { ssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$1.key"; }
key_rsa() { ssl genpkey -algorithm RSA -pkeyopt "rsa_keygen_bits:$2" -out "$work/$1.key"; }

# self_signed NAME CN
self_signed() {
  ssl req -new -x509 -sha256 -config "$work/openssl.cnf" -extensions ca -days 3650 \
    -key "$work/$1.key" -subj "/O=libbio_uring tests/CN=$2" -out "$work/$1.pem"
}

# signed NAME CN ISSUER EXTENSIONS DAYS
signed() {
  ssl req -new -sha256 -config "$work/openssl.cnf" -key "$work/$1.key" \
    -subj "/O=libbio_uring tests/CN=$2" -out "$work/request"
  ssl x509 -req -sha256 -in "$work/request" -CA "$work/$3.pem" -CAkey "$work/$3.key" \
    -set_serial "0x$(openssl rand -hex 15)" -extfile "$work/openssl.cnf" -extensions "$4" -days "$5" -out "$work/$1.pem"
}

# append NAME ISSUER: what a server sends is its own certificate and then its issuer's.
append() { cat "$work/$2.pem" >>"$work/$1.pem"; }

cat >"$work/openssl.cnf" <<'END'
[req]
distinguished_name = name
prompt = no
[name]
CN = overridden by -subj

[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash

[intermediate]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
crlDistributionPoints = URI:http://crl.example.test/ca.crl

# keyEncipherment is for RSA key exchange, which TLS 1.2 still has.
[server_rsa]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, DNS:*.example.test, IP:127.0.0.1, IP:::1
crlDistributionPoints = URI:http://crl.example.test/intermediate.crl

[server]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, DNS:*.example.test, IP:127.0.0.1, IP:::1
crlDistributionPoints = URI:http://crl.example.test/intermediate.crl

[wrongname]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:other.example.test
crlDistributionPoints = URI:http://crl.example.test/intermediate.crl

[client]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
crlDistributionPoints = URI:http://crl.example.test/client-ca.crl
END

# What a "wrong CA" is must differ in name, too, or verification fails for another reason.
for ca in ca unknown-ca client-ca intermediate; do key_ec $ca; done
self_signed ca "Test root"
self_signed unknown-ca "Unknown root"
self_signed client-ca "Client root"
signed intermediate "Test intermediate" ca intermediate 1825

key_rsa rsa-ca 2048
key_rsa rsa-intermediate 2048
self_signed rsa-ca "Test RSA root"
signed rsa-intermediate "Test RSA intermediate" rsa-ca intermediate 1825

key_ec server
signed server localhost intermediate server 365
append server intermediate

key_rsa server-rsa 2048
signed server-rsa localhost rsa-intermediate server_rsa 365
append server-rsa rsa-intermediate

key_rsa server-rsa4096 4096
signed server-rsa4096 localhost rsa-intermediate server_rsa 365
append server-rsa4096 rsa-intermediate

key_ec wrongname
signed wrongname other.example.test intermediate wrongname 365
append wrongname intermediate

key_ec unknown
signed unknown localhost unknown-ca server 365

key_ec client
signed client "Test client" client-ca client 365
key_ec client-unknown
signed client-unknown "Unknown client" unknown-ca client 365

key_ec mismatch

# Expired: only "openssl ca" takes dates on OpenSSL before 3.4, and it keeps books.
key_ec expired
cat >>"$work/openssl.cnf" <<END
[books]
database = $work/index.txt
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
organizationName = optional
commonName = supplied
END
: >"$work/index.txt"
ssl req -new -sha256 -config "$work/openssl.cnf" -key "$work/expired.key" \
  -subj "/O=libbio_uring tests/CN=localhost" -out "$work/request"
ssl ca -batch -notext -config "$work/openssl.cnf" -name books -in "$work/request" \
  -cert "$work/intermediate.pem" -keyfile "$work/intermediate.key" -extensions server \
  -startdate 20220101000000Z -enddate 20230101000000Z -out "$work/expired.pem" >/dev/null
append expired intermediate

# One file to trust both roots of the server certificates.
cat "$work/rsa-ca.pem" >>"$work/ca.pem"

# The issuers' keys are not needed again; the rest was scaffolding.
for ca in ca unknown-ca client-ca intermediate rsa-ca rsa-intermediate; do rm "$work/$ca.key"; done
rm -f "$work"/index.txt* "$work/request" "$work/log" "$work/openssl.cnf" "$work"/[0-9A-F][0-9A-F]*.pem
echo "$edition" >"$work/edition"
chmod 644 "$work"/*.pem "$work/edition"
chmod 755 "$work"

rm -rf "$out"
mv "$work" "$out"
trap - EXIT

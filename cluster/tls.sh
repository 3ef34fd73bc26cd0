#!/usr/bin/env bash
# cluster/tls.sh DIRECTORY HEAD-ADDRESS [NODE-ADDRESS ...]
#
# Makes certificates with which a Ray cluster encrypts the messages between its nodes: a certificate authority for the
# cluster, and for each address a folder with a certificate that the authority signed. The same command with more addresses
# adds nodes. Copy to each node its own folder, and to everybody who submits jobs the head's folder. Never copy
# authority.key. Then run on each of these machines
#
#     source DIRECTORY/ADDRESS/environment.sh
#
# before `ray start` or crmuons. Use the addresses that the nodes use for each other: `ray start` prints a node's address as
# "Local node IP".
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: tls.sh DIRECTORY HEAD-ADDRESS [NODE-ADDRESS ...]" >&2; exit 1; }
umask 077
mkdir -p "$1"
directory=$(cd "$1" && pwd)
shift
days=365
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

cd "$directory"
if [ ! -f authority.key ]; then
  openssl req -x509 "${key[@]}" -keyout authority.key -out authority.crt -days $days -subj "/CN=crmuons Ray cluster" 2>/dev/null
fi
for address in "$@"; do
  kind=DNS
  [[ $address =~ ^[0-9.]+$|: ]] && kind=IP
  mkdir -p "$address"
  openssl req -new "${key[@]}" -keyout "$address/node.key" -out "$address/node.csr" -subj "/CN=$address" 2>/dev/null
  # A node also connects to itself over loopback.
  openssl x509 -req -in "$address/node.csr" -CA authority.crt -CAkey authority.key -CAcreateserial -days $days \
    -extfile <(echo "subjectAltName=$kind:$address,IP:127.0.0.1,DNS:localhost") -out "$address/node.crt" 2>/dev/null
  rm "$address/node.csr"
  cp authority.crt "$address/"
  cat >"$address/environment.sh" <<'END'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export RAY_USE_TLS=1 RAY_TLS_SERVER_CERT="$here/node.crt" RAY_TLS_SERVER_KEY="$here/node.key" RAY_TLS_CA_CERT="$here/authority.crt"
END
  echo "$directory/$address"
done

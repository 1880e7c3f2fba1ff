#!/bin/sh
# Prints the Secrets with the certificates of RabbitMQ and MongoDB, signed by an
# authority of its own:
#
#   NAMESPACE=default deploy/tls/certificates.sh | kubectl apply -f -
#
# NAMESPACE is the one that the servers run in: KEDA asks for rabbitmq.NAMESPACE.svc.
# They are valid for a year. Run it again before that, apply, and restart
# MongoDB; RabbitMQ reads them again by itself. The
# authority, valid for ten years, is kept in deploy/tls/authority, which git ignores:
# whoever has its key can pass for the servers. Without it, the next run makes a new
# one, and complex-app is to be restarted, too.
set -eu
umask 077
namespace=${NAMESPACE:-default}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
authority=$here/authority
command -v openssl >/dev/null || { echo "certificates.sh: install openssl" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ ! -f "$authority/ca.crt" ]; then
  # all extensions are named here: what openssl's own configuration adds differs, on macOS
  # for instance
  cat >"$scratch/extensions" <<EXTENSIONS
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
EXTENSIONS
  { openssl req -new -newkey rsa:3072 -nodes -sha256 -subj "/CN=keda-p2 authority" -keyout "$scratch/ca.key" -out "$scratch/ca.csr" &&
    openssl x509 -req -in "$scratch/ca.csr" -signkey "$scratch/ca.key" -sha256 -days 3650 \
      -extfile "$scratch/extensions" -out "$scratch/ca.crt"; } 2>"$scratch/log" ||
    { cat "$scratch/log" >&2; exit 1; }
  mkdir -p "$authority"
  mv "$scratch/ca.key" "$scratch/ca.crt" "$authority"
fi

data() { printf '  %s: %s\n' "$1" "$(base64 <"$2" | tr -d '\n')"; }

for server in rabbitmq mongodb; do
  cat >"$scratch/extensions" <<EXTENSIONS
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth
subjectAltName=DNS:$server,DNS:$server.$namespace,DNS:$server.$namespace.svc,DNS:$server.$namespace.svc.cluster.local
EXTENSIONS
  { openssl req -new -newkey rsa:3072 -nodes -sha256 -subj "/CN=$server" -keyout "$scratch/$server.key" -out "$scratch/$server.csr" &&
    openssl x509 -req -in "$scratch/$server.csr" -CA "$authority/ca.crt" -CAkey "$authority/ca.key" -CAcreateserial \
      -CAserial "$scratch/serial" -sha256 -days 365 -extfile "$scratch/extensions" -out "$scratch/$server.crt"; } 2>"$scratch/log" ||
    { cat "$scratch/log" >&2; exit 1; }
  cat "$scratch/$server.key" "$scratch/$server.crt" >"$scratch/$server.pem"
  cat <<SECRET
apiVersion: v1
kind: Secret
metadata:
  name: $server-tls
  labels:
    app.kubernetes.io/name: $server
    app.kubernetes.io/part-of: keda-p2
type: kubernetes.io/tls
data:
$(data ca.crt "$authority/ca.crt")
$(data tls.crt "$scratch/$server.crt")
$(data tls.key "$scratch/$server.key")
$(data tls-combined.pem "$scratch/$server.pem")
---
SECRET
done

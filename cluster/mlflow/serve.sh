#!/usr/bin/env bash
# cluster/mlflow/serve.sh --artifacts-destination /data/mlflow    # a tracking server for a group, until Ctrl-C
#
# PostgreSQL holds the runs, a directory or bucket the artifacts, and every user has a name and a password. Artifacts go
# through the server; an account cannot name another place for them. Run it as a user of its own, who owns nothing else.
# Once, before, as that user:
#     pip install 'crmuons[server]'
#     createdb mlflow                                  # on the machine of PostgreSQL, 12 or newer
#     mkdir -m 700 ~/.mlflow-server
#     echo postgresql://mlflow:PASSWORD@db.example.org/mlflow > ~/.mlflow-server/database
#
# It listens only on this machine, at port 5000; --host, --port and all other options of `mlflow server` may follow. Put a
# proxy with TLS in front of it (docs/security.md). The first start makes the account "admin" and writes its password to
# ~/.mlflow-server/admin-password. Set MLFLOW_SERVER_SECRETS to use another directory than ~/.mlflow-server.
set -euo pipefail

secrets=${MLFLOW_SERVER_SECRETS:-$HOME/.mlflow-server}
umask 077
mkdir -p "$secrets"
chmod 700 "$secrets"
if [ ! -s "$secrets/database" ]; then
  echo "serve.sh: $secrets/database is missing: write the URI of a PostgreSQL database into it, postgresql://USER:PASSWORD@HOST/NAME" >&2
  exit 1
fi
for name in admin-password cookie-key; do
  [ -s "$secrets/$name" ] || python3 -c 'import secrets; print(secrets.token_urlsafe(24))' >"$secrets/$name"
done

# Secrets go through files and the environment: every user of the machine can see arguments.
# A password may have any character: % and @ are encoded unless they are already.
MLFLOW_BACKEND_STORE_URI=$(python3 - "$secrets/database" <<'PYTHON'
import re, sys
from urllib.parse import quote, unquote
uri = open(sys.argv[1], encoding="utf-8").read().strip()
parts = re.fullmatch(r"([\w+]+://[^:/@]*:)(.*)(@[^@]*)", uri)
print(uri if parts is None else parts[1] + quote(unquote(parts[2]), safe="") + parts[3])
PYTHON
)
MLFLOW_AUTH_ADMIN_PASSWORD=$(<"$secrets/admin-password")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(<"$secrets/cookie-key")
MLFLOW_AUTH_CONFIG_PATH=$secrets/auth.ini
export MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH
# MLflow's jobs evaluate language models, in eight processes that nothing here needs.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"
# The same database holds the accounts. Checking a password is slow on purpose: once a minute is enough.
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_BACKEND_STORE_URI//%/%%}
admin_username = admin
authorization_function = crmuons.tracking.mlflow_server:authenticate
grant_default_workspace_access = false
auth_cache_ttl_seconds = 60
INI

exec mlflow server --app-name basic-auth --host 127.0.0.1 "$@"

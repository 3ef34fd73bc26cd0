#!/usr/bin/env bash
# cluster/mlflow/serve.sh --artifacts-destination /data/mlflow    # a tracking server for a group, until Ctrl-C
#
# Runs lie in PostgreSQL, artifacts in a directory or bucket, and everybody has a name and a password. Once, before:
#     pip install 'crmuons[server]'
#     createdb mlflow                                  # wherever PostgreSQL runs, 12 or newer
#     mkdir -m 700 ~/.mlflow-server
#     echo postgresql://mlflow:PASSWORD@db.example.org/mlflow > ~/.mlflow-server/database
#
# It listens on this machine alone, at port 5000; --host, --port and all other options of `mlflow server` may follow. Put a proxy
# with TLS in front of it (docs/security.md). The first start makes the account "admin" and keeps its password in
# ~/.mlflow-server/admin-password. MLFLOW_SERVER_SECRETS names another directory.
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

# In files and in the environment, not in arguments: every user of the machine sees those.
MLFLOW_BACKEND_STORE_URI=$(<"$secrets/database")
MLFLOW_AUTH_ADMIN_PASSWORD=$(<"$secrets/admin-password")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(<"$secrets/cookie-key")
MLFLOW_AUTH_CONFIG_PATH=$secrets/auth.ini
export MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH
# Jobs judge answers of language models, in eight processes of their own.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"
# Accounts live in the same database. Passwords are hashed slowly on purpose: once a minute is enough.
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = $MLFLOW_BACKEND_STORE_URI
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
auth_cache_ttl_seconds = 60
INI

exec mlflow server --app-name basic-auth --host 127.0.0.1 "$@"

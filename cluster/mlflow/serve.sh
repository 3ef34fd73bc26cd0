#!/usr/bin/env bash
# cluster/mlflow/serve.sh --artifacts-destination /data/mlflow    # a tracking server for a group, until Ctrl-C
#
# PostgreSQL holds the runs, a directory or bucket the artifacts, and every user has a name and a password. Artifacts go
# through the server; an account cannot name another place for them. Run it as a separate user, who owns nothing else. As
# root, name this user first: serve.sh --user NAME ... (--user root only if nothing else is there, as in a container).
# Before the first start, as that user:
#     pip install 'crmuons[server]'
#     createdb mlflow                                  # on the machine of PostgreSQL, 12 or newer
#     mkdir -m 700 ~/.mlflow-server
#     echo postgresql://mlflow:PASSWORD@db.example.org/mlflow > ~/.mlflow-server/database
#
# It listens only on this machine, at port 5000; --host, --port and all other options of `mlflow server` may follow. Put a
# proxy with TLS in front of it (docs/security.md). The first start makes the account "admin" and writes its password to
# ~/.mlflow-server/admin-password. Set MLFLOW_SERVER_SECRETS to use another directory than ~/.mlflow-server.
set -euo pipefail

if [ "${1:-}" = --user ]; then
  user=${2:?"serve.sh: --user needs a name"}
  shift 2
  if [ "$(id -u)" != "$(id -u "$user")" ]; then
    HOME=$(getent passwd "$user" | cut -d: -f6)
    export HOME USER="$user" LOGNAME="$user"
    exec setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups --no-new-privs "$0" "$@"
  fi
elif [ "$(id -u)" = 0 ]; then
  echo "serve.sh: not as root: give --user NAME first, the name of a user who owns nothing else, since every account uses this server's rights" >&2
  exit 1
fi

secrets=${MLFLOW_SERVER_SECRETS:-$HOME/.mlflow-server}
umask 077
mkdir -p "$secrets"
chmod 700 "$secrets"
if [ ! -s "$secrets/database" ]; then
  echo "serve.sh: $secrets/database is missing: write the URI of a PostgreSQL database into it, postgresql://USER:PASSWORD@HOST/NAME" >&2
  exit 1
fi
# Every account can read and write everything in the directory of the artifacts, so nothing else may be in it.
python3 - "$secrets" "$HOME" "$@" <<'PYTHON'
import os, sys
secrets, home, *words = sys.argv[1:]
names = ("--artifacts-destination", "--default-artifact-root")
places = [os.environ.get(name, "") for name in ("MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_DEFAULT_ARTIFACT_ROOT")]
places += [word.partition("=")[2] for word in words if word.partition("=")[0] in names]
places += [after for word, after in zip(words, words[1:]) if word in names]
for place in places or ["mlartifacts"]:
    path = os.path.realpath(place.removeprefix("file://"))
    if not place or ("://" in place and not place.startswith("file://")):
        continue  # A bucket.
    for what, kept in (("the server's secrets", secrets), ("your home directory", home), ("the server's code", sys.prefix)):
        kept = os.path.realpath(kept)
        inside = kept == path or kept.startswith(path.rstrip("/") + "/")
        if inside or (what == "the server's secrets" and path.startswith(kept + "/")):
            sys.exit(f"serve.sh: {place} holds or is in {what} ({kept}), which every account could read: choose another directory")
PYTHON
for name in admin-password cookie-key; do
  [ -s "$secrets/$name" ] || python3 -c 'import secrets; print(secrets.token_urlsafe(24))' >"$secrets/$name"
done

# Secrets go through files and the environment, because every user of the machine can see arguments.
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
# The same database holds the accounts. Checking a password is slow on purpose, so a result is kept for a minute.
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

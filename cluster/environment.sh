# source cluster/environment.sh    # on every machine, before `ray start` and before `ray job submit`
#
# Everybody who has the token can run code on the cluster. So only its owner can read the file. Every node needs the same
# token, in a home directory that the nodes share, or in a copy.
# shellcheck shell=bash
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
export RAY_USAGE_STATS_ENABLED=0  # Without this, Ray sends usage statistics to its developers every hour.
# Keep the processes that read. With the default of 1 s, each read starts a new process.
export RAY_idle_worker_killing_time_threshold_ms=600000
export RAY_JOB_STOP_WAIT_TIME_S=60  # By default `ray job stop` kills after 3 s, too soon for a checkpoint.

umask o-w  # Only you and, if your umask allows it, your group may change the files of runs.

if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then (
  umask 077
  mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
  made=$(mktemp "$RAY_AUTH_TOKEN_PATH.XXXXXX")
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$made"
  mv -n "$made" "$RAY_AUTH_TOKEN_PATH"  # If another job was faster, its token stays.
  rm -f "$made"
) fi
chmod 600 "$RAY_AUTH_TOKEN_PATH"

# make_private_folder sets `folder` to a folder that this user owns and nobody else can enter. Give `ray start --temp-dir` a
# folder below it: Ray's own folders have mode 0777 with any umask, so every user of the machine could replace a job's code.
make_private_folder() {
  folder=${RAY_TMPDIR:-/tmp}/ray-$(id -u)  # Short: the paths of Ray's sockets have 107 characters at most.
  mkdir -m 700 "$folder" 2> /dev/null || true
  if [ "$(stat -c '%u %F' "$folder")" != "$(id -u) directory" ]; then  # Another user made it first.
    folder=$(mktemp -d "$folder-XXXXXXXX")
  fi
  chmod 700 "$folder"
  if [ ${#folder} -gt 33 ]; then
    echo "RAY_TMPDIR=$RAY_TMPDIR is too long for Ray's sockets: use a directory of at most $((33 - ${#folder} + ${#RAY_TMPDIR})) characters" >&2
    return 1
  fi
  [ -z "${TMPDIR:-}" ] || [ ${#TMPDIR} -le 70 ] || export TMPDIR="$folder"  # Ray's Python processes make sockets there.
}

# wait_for_port HOST:PORT waits until something listens there, for at most five minutes.
wait_for_port() {
  local second
  for second in {1..300}; do
    (: < "/dev/tcp/${1%:*}/${1##*:}") 2> /dev/null && return
    sleep 1
  done
  echo "nothing listens at $1 after $second s: has the head node started?" >&2
  return 1
}

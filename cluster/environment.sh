# source cluster/environment.sh    # on every machine, before `ray start` and before `ray job submit`
#
# Whoever holds the token can run code on the cluster: its file is for its owner alone, and the same on every node
# (a home that the nodes share, or a copy).
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
export RAY_USAGE_STATS_ENABLED=0  # Ray would report the cluster to its makers every hour.
export RAY_idle_worker_killing_time_threshold_ms=600000  # Keeps the processes that read: 1 s, and each read starts another.
export RAY_JOB_STOP_WAIT_TIME_S=60  # `ray job stop` kills after 3 s otherwise, too soon for a checkpoint.

if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then (
  umask 077
  mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
  made=$(mktemp "$RAY_AUTH_TOKEN_PATH.XXXXXX")
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$made"
  mv -n "$made" "$RAY_AUTH_TOKEN_PATH"  # Another job may have been faster: then its token stays.
  rm -f "$made"
) fi
chmod 600 "$RAY_AUTH_TOKEN_PATH"

# wait_for_port HOST:PORT: until something listens there, five minutes at most.
wait_for_port() {
  local second
  for second in {1..300}; do
    (: < "/dev/tcp/${1%:*}/${1##*:}") 2> /dev/null && return
    sleep 1
  done
  echo "nothing listens at $1 after $second s: has the head node started?" >&2
  return 1
}

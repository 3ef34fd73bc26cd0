#!/bin/bash
# train.sh PRESET section.key=value ...      # train.sub runs this in its container, for at most CHECKPOINT_SECONDS at a time
#
# Exit codes: 85 if the run has a checkpoint and is not finished, 0 if it has finished, others if it failed.
set -uo pipefail
export HOME=$PWD  # The job's own directory; the home in the container may not be writable.
mkdir -p runs  # HTCondor also fetches it after a failure.
if [ -e "${_CONDOR_CREDS:-}/scitokens.use" ]; then
  export BEARER_TOKEN_FILE="$_CONDOR_CREDS/scitokens.use"
fi

# HTCondor evicts with TERM. The trap passes the signal to the run, which saves a checkpoint.
# --foreground: otherwise `timeout` sends the signal twice, and the second one ends a run at once.
timeout --foreground --signal=TERM --preserve-status "${CHECKPOINT_SECONDS:-3600}" crmuons train "$@" run.resume=auto run.storage_path=runs & run=$!
trap 'kill -TERM "$run"' TERM
code=0
while wait "$run" && code=0 || code=$?; kill -0 "$run" 2> /dev/null; do :; done
[ "$code" = 130 ] && exit 85  # The exit code of crmuons for an interrupted run.
exit "$code"

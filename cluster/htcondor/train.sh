#!/bin/bash
# train.sh PRESET section.key=value ...      # what train.sub runs in its container; at most CHECKPOINT_SECONDS at a time
#
# Exit code 85: the run has a checkpoint and wants to go on. 0: it has finished. Others: it failed.
set -uo pipefail
export HOME=$PWD  # The job's own directory; the container's may not be writable.
mkdir -p runs  # HTCondor fetches it also after a failure.
if [ -e "${_CONDOR_CREDS:-}/scitokens.use" ]; then
  export BEARER_TOKEN_FILE="$_CONDOR_CREDS/scitokens.use"
fi

# HTCondor evicts with TERM: the run gets it, and saves a checkpoint.
# In the foreground: `timeout` would otherwise signal twice, and the second one ends a run at once.
timeout --foreground --signal=TERM --preserve-status "${CHECKPOINT_SECONDS:-3600}" crmuons train "$@" run.resume=auto run.storage_path=runs & run=$!
trap 'kill -TERM "$run"' TERM
code=0
while wait "$run" && code=0 || code=$?; kill -0 "$run" 2> /dev/null; do :; done
[ "$code" = 130 ] && exit 85  # What crmuons says of an interrupted run.
exit "$code"

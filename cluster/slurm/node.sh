# srun bash cluster/slurm/node.sh HEAD_ADDRESS    # one Ray node; job.sbatch starts it on every node of the job
# shellcheck shell=bash
set -euo pipefail
source cluster/environment.sh
address=$1 port=${1##*:}

# This node gets its own folder and ports, because jobs that share a node must not use the same ones.
make_private_folder
folder=$folder/$SLURM_JOB_ID-$SLURM_PROCID
options=(--block --temp-dir="$folder" --num-cpus="$SLURM_CPUS_PER_TASK" --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
# Remove the files of an earlier attempt. End its processes first: while they write, the folder cannot be removed.
clean_up() {
  for _ in {1..10}; do
    pkill -KILL -f "$folder/" || true
    rm -rf "$folder" 2> /dev/null || true
    [ -e "$folder" ] || return 0
    sleep 0.5
  done
}
clean_up

if [ "$SLURM_PROCID" = 0 ]; then
  options+=(--head --node-ip-address="${address%:*}" --port="$port" --ray-client-server-port="$((port + 10000))" \
    --dashboard-host=127.0.0.1 --dashboard-port="$((port - 10000))")
else
  wait_for_port "$address"
  options+=(--address="$address")
fi
# Ray gives up if a node needs more than 30 s to start, for example on a busy machine. Then start it again.
attempts=3
[ "$SLURM_PROCID" != 0 ] || attempts=1  # A second head would be another cluster.
# At the end of the step, Slurm sends TERM to all its processes. `ray start` would then wait 30 s for a head that has ended.
ended=
trap 'ended=1; kill -KILL "$ray" 2> /dev/null || true' TERM
while [ -z "$ended" ] && [ "$attempts" -gt 0 ]; do
  attempts=$((attempts - 1))
  ray start "${options[@]}" & ray=$!
  while wait "$ray" && attempts=0 || true; kill -0 "$ray" 2> /dev/null; do :; done
  clean_up
done

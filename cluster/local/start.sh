#!/bin/bash
# cluster/local/start.sh        # a cluster of this machine's CPUs and GPUs, until Ctrl-C
#
# From another terminal, in the same checkout (`make setup` has made its .venv):
#     source cluster/environment.sh; source .venv/bin/activate
#     ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
#         python -m jobs.train default data.train=$PWD/data/sim run.storage_path=$PWD/runs scaling.num_workers=8
#
# The dashboard is at http://127.0.0.1:8265 and asks for the token. From another machine, use
# ssh -L 8265:127.0.0.1:8265 MACHINE. All of Ray's ports listen only on this machine, and no other node can join.
# Options after start.sh are options of `ray start`.
set -euo pipefail
cd "$(dirname "$0")/../.."
source cluster/environment.sh
export PATH="$PWD/.venv/bin:$PATH"
make_private_folder
# As Ray does on macOS and Windows: the node's address is 127.0.0.1, so that everything listens there.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 GLOO_SOCKET_IFNAME=lo
# --num-cpus: the CPUs that this shell may use, by affinity, quota and batch system. Ray itself may count more.
exec ray start --head --block --dashboard-host=127.0.0.1 --temp-dir="$folder/ray" \
    --num-cpus="$(python -m crmuons.machine)" "$@"

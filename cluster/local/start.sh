#!/bin/bash
# cluster/local/start.sh        # a cluster of this machine's CPUs and GPUs, until Ctrl-C
#
# From another terminal, in the same checkout (`make setup` has made its .venv):
#     source cluster/environment.sh; source .venv/bin/activate
#     ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
#         python -m jobs.train default data.train=$PWD/data/sim run.storage_path=$PWD/runs scaling.num_workers=8
#
# The dashboard is at http://127.0.0.1:8265 and asks for the token. It listens only on this machine; from another machine,
# use ssh -L 8265:127.0.0.1:8265 MACHINE. Ray's other ports listen on the network, and ask for the token too.
# Options after start.sh are options of `ray start`.
set -euo pipefail
cd "$(dirname "$0")/../.."
source cluster/environment.sh
export PATH="$PWD/.venv/bin:$PATH"
# The CPUs that this shell may use, by affinity, quota and batch system; Ray would count more of them.
exec ray start --head --block --dashboard-host=127.0.0.1 --num-cpus="$(python -m crmuons.cpus)" "$@"

#!/bin/sh
# install.sh DEVICE      # what both images run: crmuons beside this script, and the versions of its lock file, for python3
set -eu
device=$1
here=$(cd "$(dirname "$0")" && pwd)
torch=$(sed -n 's/^torch==//p' "$here/requirements.lock")
export PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

if [ "$device" = cuda ]; then
  python3 -m pip install "torch===$torch"  # PyPI's build; === passes by a CPU build that may be at hand.
else
  python3 -m pip install "torch==$torch+$device" --extra-index-url "https://download.pytorch.org/whl/$device"
fi
python3 -m pip install --constraint "$here/requirements.lock" "$here"

#!/bin/sh
# install.sh DEVICE      # both images run this: it installs crmuons, from the folder of this script, with the locked versions
set -eu
device=$1
here=$(cd "$(dirname "$0")" && pwd)
torch=$(sed -n 's/^torch==//p' "$here/requirements.lock")
export PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

if [ "$device" = cuda ]; then
  python3 -m pip install "torch===$torch"  # PyPI's build; === does not accept a local CPU build.
else
  python3 -m pip install "torch==$torch+$device" --extra-index-url "https://download.pytorch.org/whl/$device"
fi
python3 -m pip install --constraint "$here/requirements.lock" "$here"

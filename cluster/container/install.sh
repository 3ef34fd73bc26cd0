#!/bin/sh
# install.sh DEVICE      # both images run this: it installs crmuons, from the folder of this script, with the locked versions
#
# Every file must have the SHA-256 that requirements.lock gives for Linux on x86-64 with Python 3.11. The exception is torch
# with its CUDA or ROCm libraries: each index has its own builds, so only the version is fixed.
set -eu
device=$1
here=$(cd "$(dirname "$0")" && pwd)
torch=$(sed -n 's/^torch==//p' "$here/requirements.lock")
export PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed 's/ --hash=.*//' "$here/requirements.lock" >"$work/versions.txt"

install_torch() {
  if [ "$device" = cuda ]; then
    python3 -m pip install "$@" "torch===$torch"  # PyPI's build; === does not accept a local CPU build.
  else
    python3 -m pip install "$@" "torch==$torch+$device" --extra-index-url "https://download.pytorch.org/whl/$device"
  fi
}

install_torch --no-deps
# Install only the locked packages that crmuons needs. The other packages are for its developers.
python3 -m pip install --quiet --dry-run --report "$work/needed.json" --constraint "$work/versions.txt" "$here"
python3 - "$work/needed.json" "$here/requirements.lock" >"$work/hashed.txt" <<'PYTHON'
import json, re, sys
plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
needed = {plain(entry["metadata"]["name"]) for entry in json.load(open(sys.argv[1]))["install"]} | {"setuptools"}
for line in open(sys.argv[2]):
    if "--hash=" in line and plain(line.partition("==")[0]) in needed:
        print(line, end="")
PYTHON
python3 -m pip install --require-hashes --no-deps --only-binary :all: --requirement "$work/hashed.txt"
install_torch --constraint "$work/versions.txt"  # This adds torch's libraries; all other packages are installed.
python3 -m pip install --no-deps --no-build-isolation "$here"
python3 -m pip check

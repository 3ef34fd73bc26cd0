"""Print requirements.lock: every version of this environment, with the SHA-256 of its file for this platform.

torch alone has no hash: each of its indices (CPU, CUDA, ROCm) has builds of its own of one version.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PIP = [sys.executable, "-m", "pip"]


def main() -> None:
    """Ask pip for the versions, and then for the files that it would install for them."""
    freeze = [*PIP, "freeze", "--all", "--exclude", "crmuons", "--exclude", "pip", "--exclude", "wheel"]
    found = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()  # noqa: S603  pip
    hashed = [line for line in found if not line.startswith("torch==")]
    with tempfile.TemporaryDirectory() as folder:
        report, wanted = Path(folder) / "report.json", Path(folder) / "wanted.txt"
        wanted.write_text("\n".join(hashed), encoding="utf-8")
        asked = ["--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--only-binary", ":all:"]
        subprocess.run([*PIP, "install", *asked, "--report", report, "-r", wanted], check=True)  # noqa: S603  pip
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    digests = {
        _plain(entry["metadata"]["name"]): entry["download_info"]["archive_info"]["hashes"]["sha256"]
        for entry in entries
    }
    for line in found:
        name, _, version = line.partition("==")
        sys.stdout.write(
            f"torch=={version.partition('+')[0]}\n"
            if name == "torch"
            else f"{line} --hash=sha256:{digests[_plain(name)]}\n"
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()

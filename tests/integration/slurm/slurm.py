"""A Slurm of two nodes on one machine, with everything it writes below one folder."""

import os
import secrets
import shutil
import socket
import string
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.ports import free_ports

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "scancel", "scontrol", "squeue", "sinfo")


def missing() -> str | None:
    """Why Slurm cannot be started here; None where it can."""
    if os.geteuid() != 0:
        return "slurmd starts jobs as root alone"
    absent = [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)" if absent else None


@dataclass(frozen=True)
class Slurm:
    """A running Slurm.

    Attributes:
        folder: of its configuration and logs.
        environment: of commands that are to reach it.
    """

    folder: Path
    environment: dict[str, str]

    def command(self, *words: str, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands, or any other beside it, and give what it prints."""
        done = subprocess.run(
            words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def processes(self) -> list[psutil.Process]:
        """What runs in its jobs, or is left of them."""
        return [process for process in self.everything() if "SLURM_JOB_ID" in _environment(process)]

    def everything(self) -> list[psutil.Process]:
        """Its jobs, daemons, and the step managers that these leave behind when they are killed."""
        ours = self.environment["SLURM_CONF"]
        return [process for process in psutil.process_iter() if _environment(process).get("SLURM_CONF") == ours]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # It has ended.
        return {}


@contextmanager
def slurm(folder: Path, environment: dict[str, str]) -> Iterator[Slurm]:
    """Start a Slurm, and stop it with everything that runs in its jobs.

    Args:
        folder: new, for all that it writes.
        environment: of its jobs.
    """
    folder.mkdir()
    _write_configuration(folder)
    known = environment | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    started: list[subprocess.Popen[bytes]] = []
    running = Slurm(folder, known)
    try:
        for words in _daemons(folder):
            with (folder / "daemons.log").open("ab") as log:
                started.append(subprocess.Popen(words, env=known, stdout=log, stderr=log))
        _wait_until_idle(running)
        yield running
    finally:
        for process in running.everything():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in started:
            process.wait()


def _daemons(folder: Path) -> list[list[str]]:
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files]
    return [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]


def _write_configuration(folder: Path) -> None:
    ports = {f"PORT{i}": port for i, port in enumerate(free_ports(3))}
    values = {"BASE": folder, "HOST": socket.gethostname().split(".")[0], **ports}
    template = string.Template(Path(__file__).with_name("slurm.conf").read_text())
    (folder / "slurm.conf").write_text(template.substitute(values))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))


def _wait_until_idle(running: Slurm) -> None:
    deadline = time.monotonic() + 60
    while True:
        said = subprocess.run(
            ["sinfo", "--noheader", "--format=%t %D"],
            env=running.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if said.stdout.split() == ["idle", "2"]:
            return
        assert time.monotonic() < deadline, f"{said}\n{(running.folder / 'daemons.log').read_text()}"
        time.sleep(0.2)


def _path() -> str:
    """Debian keeps daemons in /usr/sbin, which is not on every PATH."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

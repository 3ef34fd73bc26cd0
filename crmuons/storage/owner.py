"""The owner of an output: the record of a process, which other processes and people read, and the errors that name it."""

import getpass
import os
import shlex
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crmuons.storage.redact import without_credentials

COMMAND_LENGTH = 100  # Letters of a command that a message shows; the rest are settings.


class HeldError(BlockingIOError):
    """Raised if another command owns the output; the message names it, the time, and the remedy."""


class LostError(OSError):
    """Raised if another command has taken over an output of this process."""


@dataclass(frozen=True)
class Owner:
    """The process that owns an output. Empty or zero values are unknown.

    Attributes:
        machine: identifies a machine from one boot to the next.
        namespace: the table of processes (a container has its own) to which `pid` belongs.
        born: when the process started, in the clock ticks of its machine, because numbers of processes are used again.
        since: when it took the output, for people.
        superseded: keys of the dead claims that it found.
    """

    user: str = ""
    host: str = ""
    machine: str = ""
    namespace: str = ""
    pid: int = 0
    born: str = ""
    command: str = ""
    since: str = ""
    superseded: tuple[str, ...] = ()

    @classmethod
    def this_process(cls, superseded: tuple[str, ...] = ()) -> "Owner":
        """Return the record of this process."""
        return cls(
            user=_user(),
            host=socket.gethostname(),
            machine=machine(),
            namespace=_namespace(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            command=_command(),
            since=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
            superseded=superseded,
        )

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Owner":
        """Return the owner in a claim's record. Records of other versions may have fewer or more fields."""
        # Anyone who can write there may write a claim, so only known fields of the right type are used.
        kinds = {name: type(field.default) for name, field in cls.__dataclass_fields__.items()}
        keys = record.get("superseded")
        record = record | {"superseded": tuple(keys) if isinstance(keys, list) else ()}
        return cls(**{name: record[name] for name, kind in kinds.items() if isinstance(record.get(name), kind)})

    def describe(self) -> str:
        """Describe the owner, for a message."""
        # The record may be damaged, or not complete yet.
        if not self.pid:
            return "another process, whose record cannot be read yet"
        # Only printable characters: a record must not move the cursor of the terminal.
        text = f"{self.user} on {self.host} since {self.since} (process {self.pid}: {self.command})"
        return "".join(character for character in text if character.isprintable())

    def is_gone(self) -> bool | None:
        """Return whether its process has ended; None if this process cannot know."""
        if not self.machine or (self.machine, self.namespace) != (machine(), _namespace()):
            return None
        try:
            # Signal 0 is never sent; only the check is done.
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # The process of another user exists; /proc may hide it.
            return False
        # The number may have been given to a later process.
        return _born(self.pid) != self.born


def machine() -> str:
    """Identify this machine, from one boot to the next."""
    # The host's name is not enough: two machines may share it, and a reboot ends all earlier processes.
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text(encoding="utf-8").strip() if boot.is_file() else socket.gethostname()


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Return when a process started; empty if it has ended and waits for its parent, or if there is no /proc."""
    try:
        # The name, in parentheses, may have any characters, so the fields after it are read.
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    # Field 22 of proc(5), the start time: `fields` begins with field 4.
    return "" if state in "ZX" else fields[18]


def _command() -> str:
    name, *words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if name not in {"crmuons", "cli.py"}:  # The command lines of Ray's workers have a password.
        return name
    command = without_credentials(shlex.join(["crmuons", *words]))
    return command if len(command) < COMMAND_LENGTH else f"{command[:COMMAND_LENGTH]} ..."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # No entry in the user database, as in a container with --user.
        return f"uid {os.getuid()}"

"""Choose the directory of a Ray cluster: below a parent that only its owner can enter, with a path short enough for sockets.

With any umask, Ray gives its session directory, its logs and the code of its jobs mode 0777. Everybody who can reach
them can replace a file that the next task runs. cluster/environment.sh does the same for clusters that scripts start.
"""

import logging
import os
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH = 107  # bytes on Linux
# The longest name that Ray 2.60 adds, with the longest process id.
RAY_NAME = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_UsageStatsHead"
PYTHON_NAME = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # A socket of the module multiprocessing.
ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # `_private_below` checks what it finds there.


def private_directory() -> Path:
    """Return a directory that belongs to this user and that only this user can enter; it is made if necessary.

    It is below RAY_TMPDIR if that is set. Otherwise it is below the first of TMPDIR, /tmp, /var/tmp and /dev/shm that can be
    used.

    Raises:
        OSError: if there is none; the message has the reason for each and the remedy.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    bases = [chosen] if chosen else [base for base in (os.environ.get("TMPDIR"), *ELSEWHERE) if base]
    reasons = []
    for base in bases:
        try:
            return _private_below(Path(base).absolute())
        except OSError as error:
            reasons.append(f"{base} ({error.strerror})")
    msg = (
        f"Ray has no directory for its sockets: {', '.join(reasons)} cannot be used; set RAY_TMPDIR to a directory with a "
        "short path that you can write to"
    )
    raise OSError(msg)


def shorten_tmpdir(directory: Path) -> None:
    """Set TMPDIR to a directory if its own path is too long for the sockets that Ray's Python processes make there."""
    if len(os.fsencode(tempfile.gettempdir() + PYTHON_NAME)) > MAX_SOCKET_PATH:
        logger.info("TMPDIR=%s is too long for sockets; Ray uses %s", tempfile.gettempdir(), directory)
        os.environ["TMPDIR"] = tempfile.tempdir = str(directory)


def is_open_to_others(directory: Path) -> bool:
    """Return whether other users of this machine can change files of a directory: they reach it, and may write there."""
    try:
        mode = directory.stat().st_mode
        reachable = all(parent.stat().st_mode & stat.S_IXOTH for parent in directory.absolute().parents)
    except OSError:  # The directory is on another machine.
        return False
    return bool(mode & stat.S_IWOTH) and reachable


def _private_below(base: Path) -> Path:
    user = os.getuid()
    # mkdtemp may have to append eight characters.
    too_long = len(os.fsencode(f"{base}/ray-{user}-xxxxxxxx{RAY_NAME}")) - MAX_SOCKET_PATH
    if too_long > 0:
        raise OSError(None, f"its path is {too_long} characters too long for a socket")
    mode = base.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OSError(None, "every user may replace what is in it")
    folder = base / f"ray-{user}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_own(folder):  # Another user made it first, perhaps to read what is put into it.
            return Path(tempfile.mkdtemp(prefix=f"ray-{user}-", dir=base))
    folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(None, "it cannot be written")
    return folder


def _is_own(folder: Path) -> bool:
    """Return whether a path is a directory, not a link to one, of this user."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()

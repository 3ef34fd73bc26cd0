"""What made a result: the user, the git commit and the package versions that tag a run."""

import functools
import getpass
import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path


def git_commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the checkout that holds the code, with "-dirty" appended if tracked files were changed.

    Args:
        file: a source file.

    Returns:
        None if git is not installed or does not track the file, as in an installed package.
    """
    git = shutil.which("git")
    if git is None:
        return None
    folder = file.resolve().parent

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", folder, *words], capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", file.name) is None:
        return None
    return ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def code_tags() -> dict[str, str]:
    """Return the versions of crmuons, torch and Ray as far as they are installed, and the git commit, as tags.

    Every call returns the tags of the process's first call: a checkout that changes later is not the code that runs.
    """
    return dict(_code_tags())


@functools.cache  # Every checkpoint holds the tags, and a call starts two git processes.
def _code_tags() -> dict[str, str]:
    tags = {
        f"{name}_version": version for name in ("crmuons", "torch", "ray") if (version := _version(name)) is not None
    }
    commit = git_commit()
    return tags if commit is None else tags | {"git_commit": commit}


def user_name() -> str:
    """Return the name of this user; "uid-N" for a user without one, as in a container that runs as a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on.
        return f"uid-{os.getuid()}"


def complete_environment() -> None:
    """Set USER and HOME for a user without an account on the machine, because Ray, torch and MLflow fail without them.

    Only this user may change the files of this process, and the group if the umask allows it. An empty RAY_ADDRESS and
    `local` name no cluster, so the variable is removed: otherwise Ray would start a cluster in /tmp/ray, where every user
    of the machine may change files.
    """
    if os.environ.get("RAY_ADDRESS", "there").strip() in ("", "local"):
        del os.environ["RAY_ADDRESS"]
    os.umask(os.umask(0o077) | 0o002)
    os.environ.setdefault("USER", user_name())
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # As Docker does. Nobody can write there; all that keeps files in HOME can do without.


def _version(package: str) -> str | None:
    """Return the version of an installed package; None for a checkout on the path, or a package that is not needed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

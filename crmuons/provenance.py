"""The code that made a result: the git commit and the package versions that tag a run."""

import importlib.metadata
import shutil
import subprocess
from contextlib import suppress
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
    """Return the versions of crmuons, torch and Ray as far as they are installed, and the git commit if there is one."""
    tags = {}
    for name in ("crmuons", "torch", "ray"):
        with suppress(importlib.metadata.PackageNotFoundError):  # crmuons runs from a checkout, and without Ray.
            tags[f"{name}_version"] = importlib.metadata.version(name)
    commit = git_commit()
    return tags if commit is None else tags | {"git_commit": commit}

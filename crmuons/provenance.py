"""Which code made a result: the commit and the versions that a run is tagged with."""

import importlib.metadata
import shutil
import subprocess
from pathlib import Path


def git_commit(file: Path = Path(__file__)) -> str | None:
    """The commit of the checkout that holds the code, with "-dirty" after it where tracked files were changed.

    Args:
        file: a source file. Where git does not track it, as in an installed package, there is no commit to name.
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
    """Tags that name the code: the commit, where there is one, and the versions of crmuons, torch and Ray."""
    tags = {f"{name}_version": importlib.metadata.version(name) for name in ("crmuons", "torch", "ray")}
    commit = git_commit()
    return tags if commit is None else tags | {"git_commit": commit}

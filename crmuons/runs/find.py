"""The choice of the run that a command starts or continues."""

import re
from collections.abc import Iterable, Iterator

from crmuons import config
from crmuons.runs.directory import START, Run
from crmuons.runs.location import RunStorage
from crmuons.storage import artifacts, files
from crmuons.storage.claims import FOLDER


def find_run(settings: config.Config, storage: RunStorage) -> Run:
    """Return the run that the settings name: an existing run to continue (run.resume=auto), or a new run.

    Raises:
        ValueError: if a run of the given name exists and shall not be continued.
        OSError: if the storage cannot be read.
    """
    name, url = settings.run.name, storage.url
    # Names here and at the URL: another machine may have begun a run, and this machine has no copy of that run.
    names = set(_taken(storage, name))
    # Only names made from the settings are numbered; a name that the user chose is one run.
    numbered = _numbered(name, names) if name.endswith(settings.digest()) else {}

    def run(name: str) -> Run:
        return Run(storage.directory / name, f"{url}/{name}" if url else None)

    if settings.run.resume == "auto":
        # The newest of them belongs to the last command with these settings.
        started = [candidate for candidate in map(run, (name, *numbered.values())) if has_started(candidate)]
        return started[-1] if started else run(name)
    if name not in names:
        return run(name)
    if not name.endswith(settings.digest()):
        msg = f"run '{name}' exists in {url or storage.directory}; continue it with run.resume=auto, or choose another run.name"
        raise ValueError(msg)
    return run(f"{name}-{max(numbered, default=1) + 1}")


def _taken(storage: RunStorage, begin: str) -> Iterator[str]:
    """Yield the used names that begin with `begin`. If a place has only the mark of an owner, no run has begun there."""
    for place, free in ((str(storage.directory), ([FOLDER],)), (storage.url, ([FOLDER], []))):
        for name in () if place is None else files.names(place):
            if name.startswith(begin) and files.names(f"{place}/{name}") not in free:
                yield name


def has_started(run: Run) -> bool:
    """Return whether a run can be continued, from this machine's directory or from its URL."""
    return run.has_started() or (run.url is not None and bool(artifacts.find_artifacts(run.url, START)))


def _numbered(base: str, names: Iterable[str]) -> dict[int, str]:
    """Return the names NAME-n by their n, in ascending order. Runs with the same settings are numbered from 2."""
    matches = {name: re.fullmatch(re.escape(base) + r"-(\d+)", name) for name in names}
    return dict(sorted((int(match[1]), name) for name, match in matches.items() if match))

"""Own a run: one process at a time trains it, on this machine or any other."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from crmuons import config
from crmuons.runs.directory import Run
from crmuons.runs.find import find_run
from crmuons.runs.location import RunStorage
from crmuons.storage import ownership

REMEDY = "wait until it ends, or choose another run.name"


@contextmanager
def owned_run(settings: config.Config, storage: RunStorage) -> Iterator[Run]:
    """Find the run that the settings name (see `find_run`), and own it for the duration of the block.

    Raises:
        HeldError: if another process trains it; then nothing was changed.
    """
    while True:
        run = find_run(settings, storage)
        with own(run):
            # Before this process owned it, another process may have begun or ended it.
            if find_run(settings, storage) == run:
                yield run
                return


@contextmanager
def own(run: Run, *, patience_s: float = 0.0) -> Iterator[None]:
    """Own a run, here and at its URL, for the duration of the block; see `ownership.hold`."""
    with ExitStack() as held:
        # Both places: two runs of this machine would share the copy, and two machines would share the URL.
        for place in (run.directory, run.url):
            if place is not None:
                held.enter_context(ownership.hold(place, remedy=REMEDY, patience_s=patience_s, private=True))
        yield

"""Synchronises small files between driver and workers where each node has a directory of its own for the run.

For a run that is stored at a URL, every node works in a local copy (runs/). An actor carries the few small files by which
the driver and the workers communicate: the driver's request to stop; the workers' metrics, markers and reason of a failure.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from crmuons.ray_backend import mailbox
from crmuons.runs.directory import Run
from crmuons.storage import atomic
from crmuons.training import notices

logger = logging.getLogger(__name__)

# Of looks at small files; a request to stop waits at most this long.
PERIOD_S = 1.0
TIMEOUT_S = 30.0
# Written by rank 0 alone; a failure may come from any rank.
FROM_RANK_ZERO = ("metrics.jsonl", "upload.json", "done.json")
STOP = "stop"  # The driver puts it.
DRIVER_MARKER = ".driver"  # Holds the key of the SyncHandle in the driver's own directory.


@dataclass(frozen=True)
class SyncHandle:
    """What a worker needs to reach the driver.

    Attributes:
        actor: a mailbox.KeyValueActor.
        key: identifies this command: the directory that holds it is the driver's.
    """

    actor: Any
    key: str


@contextmanager
def driver_sync(run: Run) -> Iterator[SyncHandle | None]:
    """Keep the driver's copy of a run up to date during the block; yield None if all nodes share one directory."""
    if run.url is None:
        yield None
        return
    actor = mailbox.start_key_value_actor()
    # A directory that both see shows it to the worker, whatever the paths are called.
    key = secrets.token_hex(8)
    atomic.write_text(run.directory / DRIVER_MARKER, key)
    seen = 0

    def sync() -> None:
        nonlocal seen
        if run.stop_request.exists():
            actor.put.remote(STOP, True)
        # Only what is new: metrics.jsonl grows all along a run.
        seen, files = ray.get(actor.changes_since.remote(seen), timeout=TIMEOUT_S)
        for name in files.keys() - {STOP}:
            atomic.write_text(run.directory / name, files[name].decode())

    try:
        with _poll(sync):
            yield SyncHandle(actor, key)
    finally:
        (run.directory / DRIVER_MARKER).unlink(missing_ok=True)
        # It holds a driver's values only: the next command has an actor of its own.
        ray.kill(actor)


@contextmanager
def worker_sync(run: Run, handle: SyncHandle | None, rank: int) -> Iterator[None]:
    """Send the worker's files to the driver, and receive its request to stop, during the block.

    Do nothing if this directory is the driver's own.
    """
    # Also for a URL the driver's node may run workers, in the very directory of the driver.
    marker = run.directory / DRIVER_MARKER
    if handle is None or (marker.is_file() and marker.read_text(encoding="utf-8") == handle.key):
        yield
        return
    actor = handle.actor
    # Before the first look: a request to stop of an earlier command would end this one.
    _clean_up(run, actor)
    names = (run.failure.name, notices.name_of(rank), *(FROM_RANK_ZERO if rank == 0 else ()))
    sent: dict[str, tuple[int, int]] = {name: _size_and_mtime(run.directory / name) for name in names}

    def sync() -> None:
        if ray.get(actor.get.remote(STOP), timeout=TIMEOUT_S):
            run.stop_request.touch()
        for name in names:
            path = run.directory / name
            if (current := _size_and_mtime(path)) != sent[name] and path.is_file():
                # Whole, each time: a file is small, and a lost message is made good by the next.
                ray.get(actor.put.remote(name, path.read_bytes()), timeout=TIMEOUT_S)
                sent[name] = current

    with _poll(sync):
        yield


def _clean_up(run: Run, actor: Any) -> None:
    """Remove what an earlier command left on this node, and write the failure of a worker elsewhere, if there is one."""
    run.directory.mkdir(mode=0o770, parents=True, exist_ok=True)  # As where it was begun; the umask takes more.
    for stale in (run.failure, run.stop_request, run.done, *run.directory.glob("notices-*.txt")):
        stale.unlink(missing_ok=True)
    failure: bytes | None = ray.get(actor.get.remote(run.failure.name), timeout=TIMEOUT_S)
    if failure is not None:
        atomic.write_text(run.failure, failure.decode())


@contextmanager
def _poll(sync: Callable[[], None]) -> Iterator[None]:
    """Call `sync` every PERIOD_S during the block, and once after it."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(PERIOD_S):
            _try(sync)

    thread = threading.Thread(target=loop, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _try(sync)


def _try(sync: Callable[[], None]) -> None:
    try:
        sync()
    except (OSError, ray.exceptions.RayError) as error:  # The other side may have died; Ray itself reports that.
        logger.info("driver and workers could not exchange files: %s", error)


def _size_and_mtime(path: Path) -> tuple[int, int]:
    """Return size and modification time in ns, (-1, -1) for no file: they show whether a file has changed."""
    if not path.is_file():
        return (-1, -1)
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns

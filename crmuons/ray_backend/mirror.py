"""Synchronise small files between driver and workers when each node has its own directory for the run.

For a run that is stored at a URL, every node works in a local copy (runs/). The driver and the workers communicate by a
few small files, which an actor carries: the driver's request to stop; the workers' metrics, markers, warnings and the
reason for a failure.
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

# Interval between looks at small files. A request to stop waits at most this long.
PERIOD_S = 1.0
TIMEOUT_S = 30.0
# Rank 0 alone writes these files. A failure may come from any rank.
FROM_RANK_ZERO = ("metrics.jsonl", "upload.json", "done.json")
STOP = "stop"  # Name under which the driver puts a request to stop.
DRIVER_MARKER = ".driver"  # Holds the key of the SyncHandle in the driver's own directory.


@dataclass(frozen=True)
class SyncHandle:
    """What a worker needs to reach the driver.

    Attributes:
        actor: a mailbox.KeyValueActor.
        key: identifies this command; the driver's directory holds it in the file DRIVER_MARKER.
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
    # A worker that finds this key in its directory shares the directory with the driver, even if the paths differ.
    key = secrets.token_hex(8)
    atomic.write_text(run.directory / DRIVER_MARKER, key)
    seen = 0

    def sync() -> None:
        nonlocal seen
        if run.stop_request.exists():
            actor.put.remote(STOP, True)
        # Only new values are fetched, because metrics.jsonl grows during the whole run.
        seen, files = ray.get(actor.changes_since.remote(seen), timeout=TIMEOUT_S)
        for name in files.keys() - {STOP}:
            atomic.write_text(run.directory / name, files[name].decode())

    try:
        with _poll(sync):
            yield SyncHandle(actor, key)
    finally:
        (run.directory / DRIVER_MARKER).unlink(missing_ok=True)
        # Nobody needs the values after the command: the next command starts its own actor.
        ray.kill(actor)


@contextmanager
def worker_sync(run: Run, handle: SyncHandle | None, rank: int) -> Iterator[None]:
    """Send the worker's files to the driver, and receive its request to stop, during the block.

    Do nothing if this directory is the driver's own.
    """
    # Workers on the driver's node use the driver's own directory, also for a run at a URL.
    marker = run.directory / DRIVER_MARKER
    if handle is None or (marker.is_file() and marker.read_text(encoding="utf-8") == handle.key):
        yield
        return
    actor = handle.actor
    # This comes before the first look, because a stop request left by an earlier command would end this one.
    _clean_up(run, actor)
    names = (run.failure.name, notices.name_of(rank), *(FROM_RANK_ZERO if rank == 0 else ()))
    sent: dict[str, tuple[int, int]] = {name: _size_and_mtime(run.directory / name) for name in names}

    def sync() -> None:
        if ray.get(actor.get.remote(STOP), timeout=TIMEOUT_S):
            run.stop_request.touch()
        for name in names:
            path = run.directory / name
            if (current := _size_and_mtime(path)) != sent[name] and path.is_file():
                # The whole file is sent each time. It is small, and the next message replaces a lost one.
                ray.get(actor.put.remote(name, path.read_bytes()), timeout=TIMEOUT_S)
                sent[name] = current

    with _poll(sync):
        yield


def _clean_up(run: Run, actor: Any) -> None:
    """Remove what an earlier command left on this node, and write the failure of a worker elsewhere, if there is one."""
    run.directory.mkdir(mode=0o770, parents=True, exist_ok=True)  # Closed to other users; the umask may remove more.
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

"""What the nodes of a run tell each other where each has a directory of its own: to stop, and how it goes.

A run that is kept at a URL works in a copy on every node (remote_runs.py). An actor carries the few small files by which the driver
and the workers of a run talk: the request to stop one way; metrics, marks and the reason of a failure the other way.
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

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
TIMEOUT_S = 30.0
FROM_RANK_ZERO = ("metrics.jsonl", "upload.json", "done.json")
STOP = "stop"  # Told by the driver.
DRIVER_MARKER = ".driver"  # Holds the mirror's key where a directory is the driver's own.


@dataclass(frozen=True)
class SyncHandle:
    """How a worker reaches the driver.

    Attributes:
        desk: the actor, a ray_desk.Desk.
        key: names this command: a directory that holds it is the driver's.
    """

    desk: Any
    key: str


@contextmanager
def driver_sync(run: Run) -> Iterator[SyncHandle | None]:
    """Keep the driver's copy of a run up to date while workers train elsewhere; None where all see one directory."""
    if run.url is None:
        yield None
        return
    desk = mailbox.start_key_value_actor()
    key = secrets.token_hex(8)
    atomic.write_text(run.directory / DRIVER_MARKER, key)
    seen = 0

    def look() -> None:
        nonlocal seen
        if run.stop_request.exists():
            desk.put.remote(STOP, True)
        seen, told = ray.get(desk.changes_since.remote(seen), timeout=TIMEOUT_S)
        for name in told.keys() - {STOP}:
            atomic.write_text(run.directory / name, told[name].decode())

    try:
        with _poll(look):
            yield SyncHandle(desk, key)
    finally:
        (run.directory / DRIVER_MARKER).unlink(missing_ok=True)
        ray.kill(desk)


@contextmanager
def worker_sync(run: Run, mirror: SyncHandle | None, rank: int) -> Iterator[None]:
    """Tell the driver how it goes, and hear from it; nothing where this directory is the driver's."""
    mark = run.directory / DRIVER_MARKER
    if mirror is None or (mark.is_file() and mark.read_text() == mirror.key):
        yield
        return
    desk = mirror.desk
    _begin(run, desk)
    names = (run.failure.name, *(FROM_RANK_ZERO if rank == 0 else ()))
    told: dict[str, tuple[int, int]] = {name: _state(run.directory / name) for name in names}

    def look() -> None:
        if ray.get(desk.get.remote(STOP), timeout=TIMEOUT_S):
            run.stop_request.touch()
        for name in names:
            path = run.directory / name
            if (state := _state(path)) != told[name] and path.is_file():
                ray.get(desk.put.remote(name, path.read_bytes()), timeout=TIMEOUT_S)
                told[name] = state

    with _poll(look):
        yield


def _begin(run: Run, desk: Any) -> None:
    """Take away what an earlier command left on this node, and learn whether a worker elsewhere has failed."""
    run.directory.mkdir(parents=True, exist_ok=True)
    for left_over in (run.failure, run.stop_request, run.done):
        left_over.unlink(missing_ok=True)
    failure: bytes | None = ray.get(desk.get.remote(run.failure.name), timeout=TIMEOUT_S)
    if failure is not None:
        atomic.write_text(run.failure, failure.decode())


@contextmanager
def _poll(look: Callable[[], None]) -> Iterator[None]:
    """Look every PERIOD_S while the block lasts, and once after it."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(PERIOD_S):
            _try(look)

    thread = threading.Thread(target=go_on, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _try(look)


def _try(look: Callable[[], None]) -> None:
    try:
        look()
    except (OSError, ray.exceptions.RayError) as error:  # The other side may be gone, which Ray itself tells.
        logger.info("driver and workers do not hear of each other: %s", error)


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    if not path.is_file():
        return (-1, -1)
    found = path.stat()
    return found.st_size, found.st_mtime_ns

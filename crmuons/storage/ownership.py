"""Own an output: one command at a time writes to a directory or a URL.

Two marks protect an output, both in its folder `.owner`:

- a kernel lock on a file, if the file system has locks. The kernel frees it when its process dies in any way. Some
  network file systems have no locks, and on some the locks are invisible to other machines;
- a claim (claims.py), which names the writing process and the time. Every PERIOD_S it shows that the process still lives.

A process that finds the claim of a living process is refused; the error names the owner. A process of this machine lives
if it holds the kernel lock or is in the table of processes. For another machine, only the signs of life show this: its
claim counts as dead if no sign has come for STALE_S, by the clock of the process that waits. Clocks of two machines are
never compared.

An owner that slept so long that another command has taken over ends at once: see `rivals.end_process`.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from crmuons.storage import atomic, files
from crmuons.storage.claims import FOLDER, POLL_S, Claim, Claims, clock
from crmuons.storage.owner import HeldError, LostError, Owner, machine
from crmuons.storage.rivals import end_process, held_by, taken_over
from crmuons.storage.staging.locks import FileLock, NoLocksError

logger = logging.getLogger(__name__)

PERIOD_S = 5.0
STALE_S = 30.0  # Six signs of life: nobody loses an output because the storage is slow or away for a moment.
REMEDY = "wait until it ends, or name another place"


@contextmanager
def hold(place: str | Path, *, remedy: str = REMEDY, patience_s: float = 0.0, private: bool = False) -> Iterator[None]:
    """Own a directory or a URL for the duration of the block. A directory is made if it is missing.

    Args:
        place: a path or a URL.
        remedy: the remedy in the error for a refused user.
        patience_s: how long to wait for an owner that ends.
        private: if the directory is made, only its owner and group may read it.

    Raises:
        HeldError: if another process owns it.
        PermissionError, NotADirectoryError: if it cannot be written.
    """
    # `clock` also runs while the machine sleeps, like an owner on another machine.
    ownership, deadline = Ownership(place, remedy), clock() + patience_s
    ownership.private = private
    while True:
        try:
            ownership.acquire()
            break
        except HeldError:
            if clock() > deadline:
                raise
            time.sleep(POLL_S)
    try:
        # Now nobody else can write here, so partial files of dead processes can be removed safely.
        with atomic.guarded(ownership.place, ownership.confirm):
            if ownership.folder is not None:
                atomic.remove_partials(ownership.folder)
            yield
    finally:
        ownership.release()


class Ownership:
    """The ownership of one output by this process; `hold` uses it.

    Args:
        place: a path or a URL.
        remedy: the remedy in the error for a refused user.
        on_loss: called with the reason, in a thread, if another process takes over.
    """

    def __init__(
        self, place: str | Path, remedy: str = REMEDY, on_loss: "Callable[[str], object] | None" = None
    ) -> None:
        path = Path(str(place).removeprefix("file://").removeprefix("local://")).absolute()
        self.folder = None if files.is_remote(str(place)) else path
        self.place = str(place) if self.folder is None else str(self.folder)
        self.remedy, self._on_loss = remedy, on_loss or end_process
        self.claims, self.private = Claims(self.place), False
        self._claim, self._owner = Claim(secrets.token_hex(8)), Owner()
        self._lock: FileLock | None = None
        self._has_claim = self._given_up = False
        self._made: list[Path] = []
        # The time of the last sign of life, and the thread that writes one now.
        self._confirmed, self._beating = 0.0, 0
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Own the output, or raise HeldError. Nothing is written or changed if another process owns it."""
        # A new key for each attempt: an old key whose removal failed would look like a rival.
        self._claim, self._owner = Claim(secrets.token_hex(8)), Owner.this_process()
        try:
            self._take_lock()
            self._take_claim()
        except BaseException as error:  # Also Ctrl-C while it waits.
            self._let_go()
            if isinstance(error, LostError):  # This process got no CPU time meanwhile, and another command was faster.
                raise held_by(self.claims, next(iter(self.claims.newest().values()), None), self.remedy) from error
            raise
        self._confirmed = clock()
        self._ended.clear()
        # A daemon thread: a command that ends with an error must not wait for it.
        self._thread = threading.Thread(target=self._live, name="ownership", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Release the output. A directory that was made for it and is empty is removed."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._let_go()

    def confirm(self) -> None:
        """Check that this process still owns the output, unless it showed a sign of life a moment ago.

        Raises:
            LostError: if another process has taken over.
        """
        if self._beating == threading.get_ident():  # The sign of life is itself a file below the output.
            return
        if clock() - self._confirmed > STALE_S / 2 and not self._given_up:  # After STALE_S another may take over.
            try:
                self._beat()
            except LostError as error:
                self._on_loss(str(error))
                raise

    def _take_lock(self) -> None:
        if self.folder is None:
            return
        files.check_writable(self.place)
        # The lock comes first: if it works, two commands of one machine never reach the slower claims.
        lock = FileLock(self.folder / FOLDER / "lock")
        while not lock.is_open:
            self._make(self.folder / FOLDER)
            try:
                taken = lock.acquire(shared=False, patient=lambda: False)
            except FileNotFoundError:  # An owner that ended has removed the folder at this moment.
                continue
            except NoLocksError:
                # On this file system only the claim protects the output; a lock file would be useless.
                lock.path.unlink(missing_ok=True)
                return
            except PermissionError as error:
                raise self._not_allowed(error) from error
            if not taken:
                raise held_by(self.claims, next(iter(self.claims.newest().values()), None), self.remedy)
        self._lock = lock

    def _take_claim(self) -> None:
        dead = list(self.claims.newest().values())
        for claim in dead:
            if not self._is_dead(claim):
                raise held_by(self.claims, claim, self.remedy)
        if self.folder is None:
            files.check_writable(self.place)
        # The claim is written before the dead claims are removed: an owner that only slept finds its key in it, and ends.
        self._owner = replace(self._owner, superseded=tuple(claim.key for claim in dead))
        self._write_first()
        # If two processes reach this point, at least one finds the other in this listing, and they never both stay. The process
        # with the greater key gives up. The other process waits until this has happened, because the process with the greater
        # key may have listed first and may already own the output.
        for rival in self.claims.newest().values():
            if rival.key == self._claim.key or rival.key in self._owner.superseded:
                continue
            if rival.key < self._claim.key or not self.claims.has_ended(rival, STALE_S):
                raise held_by(self.claims, rival, self.remedy)
            self._owner = replace(self._owner, superseded=(*self._owner.superseded, rival.key))
            self._beat()
        for claim in dead:
            self.claims.close(claim)

    def _write_first(self) -> None:
        # Set before the write, because a write that failed may still have arrived: `_let_go` then removes it.
        self._has_claim = True
        while True:
            try:
                return self.claims.write(self._claim, asdict(self._owner))
            except FileNotFoundError:  # The same as for the lock.
                if self.folder is None:
                    raise
                self._make(self.folder / FOLDER)
            except PermissionError as error:
                raise (error if self.folder is None else self._not_allowed(error)) from error

    def _is_dead(self, claim: Claim) -> bool:
        owner = Owner.of(self.claims.read(claim))
        if self._lock is not None and owner.machine == machine():
            return True  # A living process of this machine would hold the kernel lock.
        # Without the lock, the table of processes decides, but only for this machine and this process's namespace.
        gone = owner.is_gone()
        if gone is None:
            logger.info("%s: waiting up to %.0f s for a sign of life of %s", self.place, STALE_S, owner.describe())
            return self.claims.has_ended(claim, STALE_S)
        return gone

    def _not_allowed(self, error: PermissionError) -> OSError:
        """Return the error for a mark that this user may not write."""
        assert self.folder is not None
        claim = next(iter(self.claims.newest().values()), None)
        # Another user's command may still run; then it holds the output.
        if claim is not None and not Owner.of(self.claims.read(claim)).is_gone():
            return held_by(self.claims, claim, self.remedy)
        mark, why = self.folder / FOLDER, error.strerror
        return PermissionError(f"{mark} cannot be written ({why}): uid {mark.stat().st_uid} left it; remove it")

    def _make(self, folder: Path) -> None:
        """Make a directory and its missing parents, and remember them. All who may write to the output may write the mark."""
        self._made += atomic.make_directory(folder, private=self.folder if self.private else None)
        with suppress(PermissionError):  # The directory belongs to another user.
            if folder in self._made:
                folder.chmod(folder.parent.stat().st_mode & 0o777)

    def _live(self) -> None:
        """Show a sign of life every PERIOD_S."""
        failed = False
        while not self._ended.wait(PERIOD_S):
            try:
                self._beat()
                failed = False
            except LostError as error:
                if not self._ended.is_set():
                    self._on_loss(str(error))
                return
            except (PermissionError, NotImplementedError) as error:
                logger.warning(
                    "%s does not show other machines that it is in use, because it does not allow removing files (%s): let "
                    "no other command write to it",
                    self.place,
                    error,
                )
                # Without removing, each sign of life would leave a file: 17,000 a day.
                self._given_up = True
                with suppress(OSError):
                    self.claims.write(self._claim.end, {})
                return
            except Exception as error:  # noqa: BLE001 - each storage has its own errors; the next sign may succeed.
                if not failed:
                    logger.warning("%s: no sign of life could be written: %s", self.place, error)
                failed = True

    def _beat(self) -> None:
        with self._guard:
            # An old listing of the storage may lack the name. The output counts as lost only if the listing and the direct
            # check both lack it.
            newest = self.claims.newest()
            if not self.claims.is_there(self._claim) and self._claim.key not in newest:
                raise taken_over(self.claims, next(iter(newest.values()), None), self._confirmed)
            previous, self._claim = self._claim, self._claim.next  # A name whose writing failed is not used again.
            self._beating = threading.get_ident()
            try:
                self.claims.write(self._claim, asdict(self._owner))
            finally:
                self._beating = 0
            for claim in self.claims.newest().values():
                # A successor removed this claim, and the line above wrote it again.
                if claim.key != self._claim.key and self._claim.key in Owner.of(self.claims.read(claim)).superseded:
                    self.claims.remove(self._claim.end)
                    raise taken_over(self.claims, claim, self._confirmed)
            # The new file exists before the old one is removed, so that other processes always find at least one.
            self.claims.remove(previous)
            self._confirmed = clock()

    def _let_go(self) -> None:
        if self._has_claim:
            try:
                self.claims.close(self._claim)
            except Exception as error:  # noqa: BLE001 - each storage has its own errors; the work is done
                logger.warning(
                    "%s may seem in use for %.0f s: its mark cannot be removed: %s", self.place, STALE_S, error
                )
        self._has_claim = False
        if self._lock is not None:
            # The lock is released last, so that the next owner finds no claim of this process.
            self._lock.remove()
            self._lock = None
        if self.folder is not None:
            with suppress(OSError):
                (self.folder / FOLDER).rmdir()
        for folder in self._made:
            with suppress(OSError):  # A folder with the output is not empty and stays.
                folder.rmdir()

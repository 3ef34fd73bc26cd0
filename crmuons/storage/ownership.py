"""Own an output: one command at a time writes to a directory or a URL.

Two marks protect an output, both in its folder `.owner`:

- a kernel lock on a file, where the file system has one. The kernel frees it when its process dies in any way. Some
  network file systems have none, and some have one that other machines do not see;
- a claim (claims.py), which says who writes, since when, and every PERIOD_S that its process still lives.

Whoever finds the claim of a living process is refused, with the name of its owner. A process of this machine lives if
it holds the kernel lock or is in the table of processes. Of another machine nothing is known but the signs of life:
its claim counts as left behind once none has come for STALE_S, by the clock of the process that waits. Clocks of
two machines are never compared.

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
STALE_S = 30.0  # Six signs of life: storage that is slow or away for a moment costs nobody the output.
REMEDY = "wait until it ends, or name another place"


@contextmanager
def hold(place: str | Path, *, remedy: str = REMEDY, patience_s: float = 0.0, private: bool = False) -> Iterator[None]:
    """Own a directory or a URL for the duration of the block. A directory is made if it is missing.

    Args:
        place: a path or a URL.
        remedy: what a user can do who is refused.
        patience_s: how long to wait for an owner that ends.
        private: close a directory that is made to all but its owner and group.

    Raises:
        HeldError: if another process owns it.
        PermissionError, NotADirectoryError: if it cannot be written.
    """
    # By `clock`, which also runs while the machine sleeps: so does the owner that is waited for.
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
        # Only now: what a dead process left is safe to remove because nobody else can write here.
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
        remedy: what a user can do who is refused.
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
        self._confirmed, self._beating = 0.0, 0  # When, and in which thread, a sign of life is written.
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Own the output, or raise HeldError. Nothing is written or changed if another process owns it."""
        # New at each attempt: a key whose removal failed earlier would look like a rival.
        self._claim, self._owner = Claim(secrets.token_hex(8)), Owner.this_process()
        try:
            self._take_lock()
            self._take_claim()
        except BaseException as error:  # Ctrl-C while it waits, too.
            self._let_go()
            if isinstance(error, LostError):  # It got no time while it asked, so that another command came before it.
                raise held_by(self.claims, next(iter(self.claims.newest().values()), None), self.remedy) from error
            raise
        self._confirmed = clock()
        self._ended.clear()
        # A daemon: a command that ends by an error must not wait for it.
        self._thread = threading.Thread(target=self._live, name="ownership", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the output free. A directory that was made for it and is empty is removed."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._let_go()

    def confirm(self) -> None:
        """Check that the output is still this process's, unless it showed a sign of life a moment ago.

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
        # The lock first: where it works, two commands of one machine never come as far as the slower claims.
        lock = FileLock(self.folder / FOLDER / "lock")
        while not lock.is_open:
            self._make(self.folder / FOLDER)
            try:
                taken = lock.acquire(shared=False, patient=lambda: False)
            except FileNotFoundError:  # An owner that ended removed the folder at this moment.
                continue
            except NoLocksError:
                # The claim alone protects this file system; a lock file would only seem to.
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
        # Written before the dead claims are removed: an owner that only slept finds its own key there, and ends.
        self._owner = replace(self._owner, superseded=tuple(claim.key for claim in dead))
        self._write_first()
        # Of two processes that have come this far, at least one finds the other in this listing, and both never stay: the
        # one with the greater key goes, and the other one waits until it has, since it may have listed first and own.
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
        # Before the write, which may have arrived although it failed: `_let_go` then removes it.
        self._has_claim = True
        while True:
            try:
                return self.claims.write(self._claim, asdict(self._owner))
            except FileNotFoundError:  # As for the lock.
                if self.folder is None:
                    raise
                self._make(self.folder / FOLDER)
            except PermissionError as error:
                raise (error if self.folder is None else self._not_allowed(error)) from error

    def _is_dead(self, claim: Claim) -> bool:
        owner = Owner.of(self.claims.read(claim))
        if self._lock is not None and owner.machine == machine():
            return True  # It would hold the kernel lock of its machine.
        # Without the lock, the table of processes tells it for this machine, and only for its own namespace of it.
        gone = owner.is_gone()
        if gone is None:
            logger.info("%s: waiting up to %.0f s for a sign of life of %s", self.place, STALE_S, owner.describe())
            return self.claims.has_ended(claim, STALE_S)
        return gone

    def _not_allowed(self, error: PermissionError) -> OSError:
        """Return the error for a mark that this user may not write."""
        assert self.folder is not None
        claim = next(iter(self.claims.newest().values()), None)
        # Another user's command may still run: then the output is held, whoever owns the mark.
        if claim is not None and not Owner.of(self.claims.read(claim)).is_gone():
            return held_by(self.claims, claim, self.remedy)
        mark, why = self.folder / FOLDER, error.strerror
        return PermissionError(f"{mark} cannot be written ({why}): uid {mark.stat().st_uid} left it; remove it")

    def _make(self, folder: Path) -> None:
        """Make a directory and its missing parents, and remember them. Who may write to the output may write the mark."""
        self._made += atomic.make_directory(folder, private=self.folder if self.private else None)
        with suppress(PermissionError):  # Another user's.
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
                    "%s does not show other machines that it is in use, since it allows no removing of files (%s): let no "
                    "other command write to it",
                    self.place,
                    error,
                )
                # Without removing, each sign of life would leave a file: 17,000 a day.
                self._given_up = True
                with suppress(OSError):
                    self.claims.write(self._claim.end, {})
                return
            except Exception as error:  # noqa: BLE001 - each storage has its own errors; the next sign may come through.
                if not failed:
                    logger.warning("%s: no sign of life could be written: %s", self.place, error)
                failed = True

    def _beat(self) -> None:
        with self._guard:
            # Its name may be missing from an old listing of the storage; both must lack it before the output counts as
            # lost.
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
            # After the new one is there: in between, another process must find at least one of them.
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
            # Last: who gets the lock finds no claim of this process any more.
            self._lock.remove()
            self._lock = None
        if self.folder is not None:
            with suppress(OSError):
                (self.folder / FOLDER).rmdir()
        for folder in self._made:
            with suppress(OSError):  # It holds the output.
                folder.rmdir()

"""One process writes to an output at a time: on any storage, told by name, taken over when its owner dies."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from crmuons.storage import atomic, ownership
from crmuons.storage import claims as claims_module
from crmuons.storage import owner as owner_module
from crmuons.storage.claims import FOLDER, Claim, Claims, names_in
from crmuons.storage.owner import HeldError, LostError, Owner
from crmuons.storage.ownership import Ownership, hold
from crmuons.storage.staging import locks

# A process that owns a place until it is killed, on a file system with or without locks.
OWN = """
import errno, sys, time
from crmuons.storage import ownership
from crmuons.storage.staging import locks
def no_flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
if sys.argv[2] == "without":
    locks.flock = no_flock
with ownership.hold(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(60)
"""
ROOT = str(Path(__file__).parents[3])


def no_flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture(params=["with", "without"])
def kernel_locks(request, monkeypatch):
    """A file system with or without locks."""
    if request.param == "without":
        monkeypatch.setattr(locks, "flock", no_flock)
    return request.param


@pytest.fixture
def quick(monkeypatch):
    """Signs of life in short turns."""
    monkeypatch.setattr(ownership, "PERIOD_S", 0.05)
    monkeypatch.setattr(ownership, "STALE_S", 0.5)
    monkeypatch.setattr(ownership, "POLL_S", 0.02)
    monkeypatch.setattr(claims_module, "POLL_S", 0.02)


@pytest.fixture
def short_lived(quick, monkeypatch):
    """Claims that count as dead soon: for tests in which no owner is alive that could be too slow."""
    monkeypatch.setattr(ownership, "STALE_S", 0.1)


@contextmanager
def other_process(place, kernel_locks):
    with subprocess.Popen(
        [sys.executable, "-c", OWN, str(place), kernel_locks],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ROOT},
    ) as process:
        try:
            assert process.stdout.read(5) == b"owned"
            yield process
        finally:
            process.kill()


def left_behind(place, **changes):
    """Write the claim of a process of another machine, which shows no sign of life by itself."""
    claim = Claim("ab" * 8)
    owner = replace(Owner.this_process(), user="ada", host="far", machine="elsewhere", command="crmuons x", **changes)
    claims = Claims(str(place))
    if claims.folder is not None:
        claims.folder.mkdir(parents=True, exist_ok=True)
    claims.write(claim, asdict(owner))
    return claims, claim, asdict(owner)


@pytest.mark.parametrize(("locked", "reaped"), [("with", True), ("without", True), ("without", False)])
def test_the_second_process_is_told_who_owns_it_and_takes_over_at_once_after_a_kill(
    tmp_path, monkeypatch, locked, reaped
):
    if locked == "without":
        monkeypatch.setattr(locks, "flock", no_flock)
    out = tmp_path / "out"
    with other_process(out, locked) as first:
        (out / ".events.parquet.0123abcd.partial").touch()
        before = sorted(path.name for path in out.rglob("*"))
        # Who, since when, with what, and what to do.
        told = rf"{out} is in use by \w+ on \S+ since 20\d\d-.* \(process {first.pid}: .*\); wait until it ends"
        for place in (out, f"file://{out}", f"local://{out}"):
            with pytest.raises(HeldError, match=told), hold(place):
                pytest.fail("both own it")
        assert first.poll() is None
        assert sorted(path.name for path in out.rglob("*")) == before  # Nothing was changed.

        first.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # A zombie, which its parent has not noticed.
        if reaped:
            first.wait()
        monkeypatch.setattr(Claims, "has_ended", lambda *_: pytest.fail("waits for a sign of life"))
        with hold(out):
            assert names_in(out) == set()
            assert len(Claims(str(out)).newest()) == 1
    assert list(out.iterdir()) == []


def test_a_block_leaves_nothing_behind_and_an_error_neither(tmp_path, kernel_locks):
    (tmp_path / "old").mkdir()
    for place in ("old", "new/deep"):
        with hold(tmp_path / place):
            assert (tmp_path / place / FOLDER).is_dir()
            assert names_in(tmp_path / place) == set()
        with pytest.raises(ZeroDivisionError), hold(tmp_path / place):
            1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_claim_of_another_machine_counts_until_it_gives_no_sign_of_life(
    tmp_path, short_lived, monkeypatch, scheme, caplog
):
    caplog.set_level(logging.INFO)
    place = f"{scheme}{tmp_path}/out"
    claims, claim, record = left_behind(place)
    begin = time.monotonic()
    with hold(place):
        assert time.monotonic() - begin >= ownership.STALE_S
        (mine,) = claims.newest().values()
        assert mine.key != claim.key
        assert claims.read(mine)["superseded"] == [claim.key]
    assert "waiting up to 0 s for a sign of life of ada on far" in caplog.text
    claims, claim, record = left_behind(place)
    monkeypatch.setattr(ownership, "STALE_S", 600.0)  # However late the sign comes on a busy machine.

    def live():
        claims.write(claim.next, record)
        claims.remove(claim)

    sign = threading.Timer(0.1, live)
    sign.start()
    with pytest.raises(HeldError, match=r"in use by ada on far since .*: crmuons x"), hold(place):
        pytest.fail("both own it")
    sign.join()


def test_a_clock_that_is_wrong_on_another_machine_changes_nothing(tmp_path, short_lived):
    left_behind(tmp_path, since="2077-01-01 00:00:00+00:00", born="9" * 12)
    with hold(tmp_path):
        pass


def test_a_claim_that_has_ended_but_could_not_be_removed_is_no_claim(tmp_path, quick, monkeypatch):
    claims, claim, _ = left_behind(tmp_path)
    claims.write(claim.end, {})
    begin = time.monotonic()
    monkeypatch.setattr(ownership, "STALE_S", 600.0)
    with hold(tmp_path):
        assert time.monotonic() - begin < 600


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"pid": "x", "superseded": 3}', b"\xff"])
def test_a_damaged_claim_counts_as_one_of_another_machine(tmp_path, short_lived, content):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / Claim("ab" * 8).name).write_bytes(content)
    with hold(tmp_path):
        pass


def test_an_owner_that_slept_too_long_ends_before_it_writes_again(tmp_path, short_lived, monkeypatch):
    monkeypatch.setattr(locks, "flock", no_flock)
    lost = []
    first = Ownership(tmp_path / "out", on_loss=lost.append)
    monkeypatch.setattr(ownership, "PERIOD_S", 60.0)  # It sleeps.
    first.acquire()
    for module in (ownership, owner_module):
        monkeypatch.setattr(module, "machine", lambda: "another")
    second = Ownership(tmp_path / "out")
    monkeypatch.setattr(ownership, "PERIOD_S", 0.05)
    second.acquire()
    with (
        pytest.raises(LostError, match=r"out was taken over by .* no sign of life for \d+ s"),
        atomic.guarded(first.place, first.confirm),
        atomic.atomic_file(tmp_path / "out" / "result") as partial,
    ):
        partial.write_text("late")
    assert names_in(tmp_path / "out") == set()
    second.confirm()
    second.release()
    first.release()


def test_a_sign_of_life_after_a_long_pause_ends_and_with_it_all_that_waits(tmp_path, short_lived, monkeypatch):
    """A process that got no time writes its mark late. The mark lies below the output, where a write asks for a sign."""
    monkeypatch.setattr(ownership, "PERIOD_S", 60.0)  # The next sign of life is asked for by a write.
    with hold(tmp_path / "out"):
        time.sleep(ownership.STALE_S)
        writing = threading.Thread(target=atomic.write_text, args=(tmp_path / "out" / "a.txt", "a"), daemon=True)
        writing.start()
        writing.join(60)
        assert not writing.is_alive()
        assert (tmp_path / "out" / "a.txt").read_text() == "a"


def test_an_owner_whose_claim_is_written_again_after_a_takeover_finds_its_successor(tmp_path, quick, monkeypatch):
    """Between the look and the writing of a sign of life another process may take over."""
    monkeypatch.setattr(locks, "flock", no_flock)
    lost = threading.Event()
    first = Ownership(tmp_path, on_loss=lambda reason: lost.set())
    first.acquire()
    left_behind(tmp_path, superseded=(first._claim.key,))
    assert lost.wait(60)
    assert first._claim.key not in Claims(str(tmp_path)).newest()
    first.release()


def test_of_many_that_begin_at_once_exactly_one_owns(tmp_path, quick, monkeypatch):
    """Threads of one process: without kernel locks, and as if each were on a machine of its own."""
    monkeypatch.setattr(ownership, "STALE_S", 600.0)  # On a busy machine a thread may get no time for seconds.
    monkeypatch.setattr(locks, "flock", no_flock)
    monkeypatch.setattr(Owner, "is_gone", lambda owner: None)
    for turn in range(5):
        place, owners, refused = f"memory://{tmp_path}/{turn}", [], []
        together = threading.Barrier(8)

        def contend(place=place, owners=owners, refused=refused, together=together):
            each = Ownership(place)
            together.wait()
            try:
                each.acquire()
                owners.append(each)
            except HeldError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(owners) == 1
        assert len(refused) == 7
        owners[0].release()


def test_a_command_that_got_no_time_while_it_asked_is_refused_by_name(tmp_path, quick, monkeypatch):
    """Between its first mark and its look at a rival's, another command counts it as dead and takes over."""
    monkeypatch.setattr(locks, "flock", no_flock)
    late, write_first = Ownership(tmp_path), Ownership._write_first

    def write_beside_a_rival(asking):
        write_first(asking)
        asking.claims.write(Claim("f" * 16), asdict(Owner()))

    def sleep_meanwhile(claims, rival, stale_s):
        left_behind(tmp_path, superseded=(late._claim.key,))
        return True

    monkeypatch.setattr(Ownership, "_write_first", write_beside_a_rival)
    monkeypatch.setattr(Claims, "has_ended", sleep_meanwhile)
    with pytest.raises(HeldError, match="is in use by"):
        late.acquire()
    assert late._claim.key not in Claims(str(tmp_path)).newest()


def test_patience_waits_for_an_owner_that_ends(tmp_path, quick):
    first = Ownership(tmp_path)
    first.acquire()
    threading.Timer(0.3, first.release).start()
    with hold(tmp_path, patience_s=10):
        pass


def test_who_may_not_write_the_mark_is_told_why(tmp_path, monkeypatch):
    left_behind(tmp_path, pid=0)

    def refused(*words, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks.os, "open", refused)
    with pytest.raises(HeldError, match="in use by another process, whose record cannot be read yet"), hold(tmp_path):
        pass


def test_the_record_shows_no_secret_and_no_control_character(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/crmuons", "generate", "--out", "https://u:p@h/x?authz=SECRET"])
    command = Owner.this_process().command
    assert command.startswith("crmuons generate --out")
    assert "SECRET" not in command
    assert "u:p" not in command
    monkeypatch.setattr(sys, "argv", ["default_worker.py", "--redis-password=SECRET"])
    assert Owner.this_process().command == "default_worker.py"
    assert "\x1b" not in Owner(pid=1, user="\x1b[31m").describe()


def test_an_error_from_writing_has_the_remedy_of_its_cause():
    assert atomic.remedy_for(OSError(errno.ENOSPC, "x")) == "free space there"
    assert "shorter" in atomic.remedy_for(OSError(errno.ENAMETOOLONG, "x"))
    assert "may write" in atomic.remedy_for(PermissionError(errno.EACCES, "x"))


def test_an_owner_removes_what_killed_processes_left_and_nothing_of_others(tmp_path):
    for name in (".a.0123abcd.partial", "sub/.b.0123abcd.partial", ".download.partial", "theirs/.c.0123abcd.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with hold(tmp_path / "theirs"):
        (tmp_path / "theirs" / ".d.0123abcd.partial").touch()
        with hold(tmp_path):
            kept = {path.name for path in tmp_path.rglob("*.partial")}
    assert kept == {".download.partial", ".d.0123abcd.partial"}

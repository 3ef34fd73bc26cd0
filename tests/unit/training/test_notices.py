"""What workers warn of reaches the screen of the driver: also what they wait for, and since when."""

import logging
import time

import pytest
import torch

from crmuons.runs.directory import Run
from crmuons.training import distributed, notices
from crmuons.training.notices import Notices, sent_to_driver


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_warnings_of_workers_are_shown_once_with_worker_node_and_time(run, caplog):
    shown = Notices(run)
    work = logging.getLogger("crmuons.training.waiting")
    for rank in range(2):
        with sent_to_driver(run, rank, 2):
            work.warning("no data since %s:\nwaiting", "22:31:05")
            work.info("not for the screen")
    work.warning("not a worker's any more")
    caplog.clear()
    shown.update()
    shown.update()
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert line.startswith(f"worker {rank} of 2 on ")
        assert line.endswith(": no data since 22:31:05: waiting")


def test_a_worker_that_begins_again_elsewhere_is_shown_again(run, caplog):
    shown = Notices(run)
    path = run.directory / notices.name_of(0)
    path.write_text("first, long\nsecond, unfinished")
    shown.update()
    path.write_text("anew\n")
    shown.update()
    assert [record.message for record in caplog.records] == ["first, long", "anew"]


def test_a_fault_that_repeats_does_not_bury_the_rest(run, caplog, monkeypatch):
    monkeypatch.setattr(notices, "MAX_SHOWN", 3)
    (run.directory / notices.name_of(1)).write_text("old\n")
    shown = Notices(run)  # What an earlier attempt wrote is no news.
    (run.directory / notices.name_of(0)).write_text("again\n" * 9)
    shown.update()
    said = [record.message for record in caplog.records]
    assert said == ["again"] * 3 + [f"more warnings of workers are in {run.directory / notices.name_of(0)}"]


@pytest.mark.parametrize(("rank", "says"), [(0, True), (1, True), (2, False)])
def test_a_long_wait_for_other_workers_is_said_once(monkeypatch, caplog, rank, says):
    def exchange(*_arguments):
        """Wait until the wait was said, and for some more looks."""
        deadline = time.monotonic() + 30 * says
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)

    monkeypatch.setattr(distributed, "SAY_AFTER_S", 0.02)
    monkeypatch.setattr(distributed, "LOOK_S", 0.01)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed.dist, "all_reduce", exchange)
    monkeypatch.setattr(distributed.dist, "broadcast", exchange)
    with distributed.long_waits_said():
        distributed.sum_over_ranks(torch.zeros(1))
        distributed.from_rank_zero([1.0], torch.device("cpu"), expected_s=60.0)  # As during a validation.
    said = [record.message for record in caplog.records]
    assert len(said) == says
    assert all(line.startswith(f"waiting for the other workers since {time.strftime('%H:')}") for line in said)

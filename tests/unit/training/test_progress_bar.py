"""Following a metrics file that grows, and one that went back to a checkpoint."""

import json
import logging
import time

from crmuons import config
from crmuons.runs.directory import Run
from crmuons.training import progress_bar
from crmuons.training.progress_bar import _new_lines, progress_of


def test_lines_are_read_once_and_only_when_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert _new_lines(path, 0) == (0, [])
    path.write_text('{"step": 1}\n{"st')
    assert _new_lines(path, 0) == (12, ['{"step": 1}'])
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert _new_lines(path, 12) == (24, ['{"step": 2}'])


def test_a_file_that_was_rewritten_is_read_from_its_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    assert _new_lines(path, 24) == (12, ['{"step": 1}'])  # Shorter than what was read.
    path.write_text('{"step": 1}\n{"step": 2, "more": 3}\n')
    assert _new_lines(path, 24)[1] == ['{"step": 1}', '{"step": 2, "more": 3}']  # Byte 24 is inside a line.


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def wait_for(number, caplog):
    deadline = time.monotonic() + 30
    while len(caplog.records) < number and time.monotonic() < deadline:
        time.sleep(0.01)


def test_lost_workers_and_changed_numbers_of_them_are_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress_bar, "LOOK_S", 0.01)
    run, settings = Run(tmp_path), config.load(None, ["train.steps=100"])
    start, end = {"step": 0, "scaling/workers": 2.0}, {"step": 40, "scaling/workers": 1.0}
    loss = {"at": "2030-01-01T00:00:00+00:00", "workers": {"1": "Its node has died."}}
    with caplog.at_level(logging.WARNING), progress_of(run, settings):
        write(run.metrics, start, {"step": 41}, {"step": 42})
        wait_for(1, caplog)
        write(run.losses, loss)
        wait_for(2, caplog)
        write(run.metrics, start, end)  # Shorter: the run went back to its checkpoint of step 40.
        wait_for(3, caplog)
    assert [record.message for record in caplog.records] == [
        "training on 2 workers from step 0",
        "workers lost at 2030-01-01T00:00:00+00:00, the run continues from its last checkpoint (worker 1: Its node has died.)",
        "training on 1 workers from step 40",
    ]

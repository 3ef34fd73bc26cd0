"""Other units than the contract's are doubted, and events of the contract are not."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from crmuons.data.events import NO_EVENTS
from crmuons.data.inspection import inspect
from crmuons.data.plausibility import doubts


def scaled(events, column, factor):
    primaries = events.primaries.copy()
    primaries[:, column] *= factor
    return replace(events, primaries=primaries)


def test_events_of_the_contract_are_not_doubted(toy_events):
    assert doubts(toy_events(300)) == []
    assert doubts(NO_EVENTS) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda events: scaled(events, 0, 1e9), r"primaries have more than 1e\+12 GeV, .* in eV"),
        (lambda events: scaled(events, 3, 1e5), r"have a depth_m of more than 1\.3e\+07 m, .*: are depths in cm or mm"),
        (lambda events: scaled(events, 2, 1e3), r"have a mass of more than 300 GeV, .* in MeV"),
        (
            lambda events: replace(events, muons=events.muons * np.float32([1, 1e6, 1e6])),
            r"muons are more than 1e\+06 m from the axis: are x_m and y_m in cm",
        ),
        (lambda events: scaled(events, 0, 1e-6), "muons have more energy than their primary: are both in GeV"),
        (
            lambda events: replace(events, muons=events.muons * np.float32([1e6, 1, 1])),
            "muons have more energy than their",
        ),
        (
            lambda events: replace(
                events,
                primaries=np.round(events.primaries * np.float32([1, 1, 1.07, 1])) * np.float32([1, 0, 1, 1]),
            ),
            r"all masses are whole numbers \(1, 4, 56\): are they mass numbers",
        ),
    ],
)
def test_other_units_are_doubted(change, says, toy_events):
    (said,) = doubts(change(toy_events(300)))
    assert re.search(says, said), said


def test_inspect_shows_a_doubt(tmp_path, toy_events, write_toy):
    write_toy(tmp_path / "a.parquet", scaled(toy_events(50), 0, 1e9))
    lines = list(inspect([str(tmp_path)], max_rows=None).lines(0))
    assert any(line.startswith("doubtful  150 of 150 primaries have more than") for line in lines)


def test_a_run_warns_of_a_doubt(tmp_path, toy_events, write_toy, caplog):
    from crmuons import config
    from crmuons.training.setup import set_up_run

    caplog.set_level(logging.WARNING)
    write_toy(tmp_path / "a.parquet", scaled(toy_events(200), 0, 1e9))
    set_up_run(config.load(None, [f"data.train={tmp_path}", "train.steps=1", "data.validation_share=0.3"]))
    assert any("primaries have more than" in record.message for record in caplog.records)

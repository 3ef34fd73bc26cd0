"""What the driver says of a run before it starts."""

import json
import logging

import pytest

from crmuons import config
from crmuons.runs.directory import MUTABLE_SETTINGS, Run
from crmuons.training.driver import _warn_if_inside
from crmuons.training.resume import UNSAID, as_begun, say_changed_settings


def test_a_run_among_its_own_data_is_warned_of(tmp_path, caplog):
    """The next listing of the data would take the run's Parquet files for events."""
    (tmp_path / "data" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "data" / "x.parquet").touch()
    settings = config.load(None, ["train.steps=1", f"data.train={tmp_path / 'data'}"])
    _warn_if_inside(tmp_path / "runs" / "a", settings)
    assert not caplog.records
    _warn_if_inside(tmp_path / "data" / "runs" / "a", settings)
    assert "lies inside the data directory" in caplog.text
    assert "name a directory outside it with run.storage_path" in caplog.text


OTHER = {int: lambda value: value + 1, float: lambda value: value / 2 + 0.001, bool: lambda value: not value}


def test_every_setting_that_changes_between_two_attempts_is_said_or_refused(tmp_path, caplog):
    """Of all settings with a number or a switch, found in the tree: a new one is tested at once."""
    caplog.set_level(logging.INFO)
    began = config.load(None, ["train.steps=100", "data.train=d"])
    (tmp_path / "config.json").write_text(json.dumps(began.model_dump(mode="json")))
    run, seen = Run(tmp_path), {"said": 0, "refused": 0}
    say_changed_settings(run, began)
    assert not caplog.records
    for path, value in began.flat().items():
        if type(value) not in OTHER or path in UNSAID:
            continue
        try:
            now = config.changed(began, {path: OTHER[type(value)](value)})
        except ValueError:  # It goes with another setting.
            continue
        words = f"{path} was {value!r}, is {now.flat()[path]!r}"
        if MUTABLE_SETTINGS.fullmatch(path):
            say_changed_settings(run, now)
            assert caplog.messages[-1] == f"the run continues with other settings than it began with: {words}"
            seen["said"] += 1
        else:
            with pytest.raises(ValueError, match="was started with other settings") as refused:
                say_changed_settings(run, now)
            assert words in str(refused.value)
            seen["refused"] += 1
    assert seen["said"] > 10
    assert seen["refused"] > 20


def test_a_run_of_an_earlier_version_keeps_what_it_had_no_setting_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    now = config.load("default", ["data.train=d"])
    stored = now.model_dump(mode="json")
    run = Run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert as_begun(run, now) is now
    for name in ("condition_noise", "weight_power_many"):
        del stored["train"][name]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    settings = as_begun(run, now)
    assert (settings.train.condition_noise, settings.train.weight_power_many) == (0, None)
    assert "without train.condition_noise and train.weight_power_many: it continues without them" in caplog.text
    run.check_unchanged(settings)
    with pytest.raises(ValueError, match=r"train\.condition_noise was 0\.0, is 0\.4"):
        run.check_unchanged(now)

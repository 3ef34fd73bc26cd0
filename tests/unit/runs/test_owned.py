"""One process trains a run; who is refused changes nothing; a start that was cut off is made whole."""

import pytest

from crmuons import config
from crmuons.models.features import Features
from crmuons.runs.directory import Run
from crmuons.runs.find import find_run
from crmuons.runs.location import RunStorage
from crmuons.runs.owned import owned_run
from crmuons.storage.files import File
from crmuons.storage.owner import HeldError
from crmuons.training import driver


def load(place, *words):
    return config.load(None, ["train.steps=5", f"run.storage_path={place}", "scaling.num_workers=0", *words])


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_the_second_driver_of_a_new_run_is_told_who_trains_it(tmp_path, monkeypatch, scheme, resume):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = load(f"{scheme}{tmp_path}/runs", "run.name=mc", f"run.resume={resume}", "data.train=nowhere")
    with owned_run(settings, RunStorage.of(settings)):
        before = names(tmp_path)
        with pytest.raises(HeldError, match=r"in use by .*; wait until it ends, or choose another run\.name"):
            driver.run_training(settings, driver.LocalLauncher())
        assert names(tmp_path) == before
    with pytest.raises(FileNotFoundError):  # Once it is free, the next error is that of the data.
        driver.run_training(settings, driver.LocalLauncher())
    assert [name for name in names(tmp_path) if "mc" in name] == []


def test_a_place_that_only_has_the_mark_of_an_owner_is_no_run_yet(tmp_path):
    settings = load(tmp_path, "run.name=mc")
    with owned_run(settings, RunStorage.of(settings)) as run:
        assert find_run(settings, RunStorage.of(settings)) == run
        (run.directory / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="run 'mc' exists"):
            find_run(settings, RunStorage.of(settings))


def test_a_start_that_was_cut_off_is_made_whole(tmp_path, toy_events):
    settings, run = load(tmp_path), Run(tmp_path / "r")
    run.directory.mkdir()
    (run.directory / "features.pt").write_bytes(b"half")
    assert not run.has_started()
    run.create(settings, [File("a.parquet", 3)], Features().fit(toy_events(100)), toy_events(5))
    assert run.has_started()
    assert len(run.load_features(settings).state_dict()) > 0


def test_a_name_that_is_too_long_is_not_called_a_full_disk(tmp_path, toy_events):
    with pytest.raises(OSError, match="choose a shorter name") as raised:
        Run(tmp_path / ("n" * 300)).create(load(tmp_path), [], Features().fit(toy_events(100)), toy_events(5))
    assert "free space" not in str(raised.value)

"""Which run a command continues, what name a new run gets, and which settings may change."""

import pytest
import torch

from crmuons import config
from crmuons.models.features import Features
from crmuons.runs import find
from crmuons.runs.directory import Path, Run
from crmuons.runs.location import RunStorage
from crmuons.storage.files import File
from crmuons.training.summary import RunSummary


def load(tmp_path, *words):
    return config.load(None, ["train.steps=5", f"run.storage_path={tmp_path}", *words])


def find_run(settings):
    return find.find_run(settings, RunStorage.of(settings))


def start(folder, settings, toy_events):
    run = Run(folder)
    run.create(settings, [File("a.parquet", 3)], Features().fit(toy_events(100)), toy_events(5))
    return run


def test_a_new_run_has_the_name_of_its_settings_and_repeats_are_numbered(tmp_path, toy_events):
    settings = load(tmp_path)
    for expected in ("", "-2", "-3"):
        run = find_run(settings)
        assert run.directory == tmp_path / f"{settings.run.name}{expected}"
        start(run.directory, settings, toy_events)
    for number in range(4, 12):
        (tmp_path / f"{settings.run.name}-{number}").mkdir()
    assert find_run(settings).directory.name == f"{settings.run.name}-12"  # By number: "-9" is not the last.


def test_auto_continues_the_newest_run_that_was_started(tmp_path, toy_events):
    settings = load(tmp_path, "run.resume=auto")
    assert find_run(settings).directory.name == settings.run.name  # None yet: a new one.
    for suffix in ("", "-2", "-10"):
        start(tmp_path / f"{settings.run.name}{suffix}", settings, toy_events)
    (tmp_path / f"{settings.run.name}-11").mkdir()  # Never started.
    assert find_run(settings).directory.name == f"{settings.run.name}-10"


def test_a_name_that_was_chosen_is_used_once_or_continued(tmp_path, toy_events):
    settings = load(tmp_path, "run.name=mc")
    start(find_run(settings).directory, settings, toy_events)
    with pytest.raises(ValueError, match=r"run 'mc' exists in .*run\.resume=auto, or choose another run\.name"):
        find_run(settings)
    assert find_run(load(tmp_path, "run.name=mc", "run.resume=auto")).directory == tmp_path / "mc"


@pytest.mark.parametrize("other", ["mc-pions-3", "mc-3"])
def test_a_run_whose_name_begins_alike_is_another_run(tmp_path, toy_events, other):
    settings = load(tmp_path, f"run.name={other}")
    start(tmp_path / other, settings, toy_events)
    assert find_run(load(tmp_path, "run.name=mc", "run.resume=auto")).directory == tmp_path / "mc"
    assert find_run(load(tmp_path, f"run.name={other}", "run.resume=auto")).directory == tmp_path / other


def test_settings_that_make_another_run_are_refused_by_name(tmp_path, toy_events):
    run = start(tmp_path / "r", load(tmp_path), toy_events)
    run.check_unchanged(load(tmp_path))
    run.check_unchanged(
        load(tmp_path, "train.steps=99", "scaling.num_workers=4", "run.resume=auto", "train.log_every=3")
    )
    with pytest.raises(
        ValueError, match=r"model\.width was 64, is 32; train\.optimizer\.lr was .*, is 0\.5; take them"
    ):
        run.check_unchanged(load(tmp_path, "model.width=32", "train.optimizer.lr=0.5"))


def test_a_run_gives_back_what_it_was_prepared_with(tmp_path, toy_events):
    settings, features, events = load(tmp_path), Features().fit(toy_events(100)), toy_events(5)
    run = Run(tmp_path / "r")
    assert not run.has_started()
    run.create(settings, [File("a.parquet", 3), File("pelican://x/b.parquet", 4)], features, events)
    assert run.has_started()
    loaded = run.load_features(settings).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in features.state_dict().items())
    assert (run.load_validation().muons == events.muons).all()
    assert run.load_files() == [File("a.parquet", 3), File("pelican://x/b.parquet", 4)]
    other = Run(tmp_path / "s")
    other.create(settings, [File("a.parquet", 5)], features, events)
    assert run.fingerprint() != other.fingerprint()


def test_a_run_appears_whole_and_never_over_something_else(tmp_path, toy_events):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for place in ("r", "file/r"):
        with pytest.raises(
            OSError, match=r"the run's directory .*r cannot be written .*choose another run\.storage_path"
        ):
            start(tmp_path / place, load(tmp_path), toy_events)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "r", "thesis.tex"]


def test_metrics_go_back_to_the_step_that_a_run_continues_from(tmp_path):
    run = Run(tmp_path)
    run.metrics.write_text(
        '{"step": 0, "a": 1.0}\n{"step": 5, "a": 2.0}\n{"step": 10, "a": 3.0, "b": 4.0}\n{"step": 15, "a"'
    )
    assert run.latest_metrics() == {"step": 10, "a": 3.0, "b": 4.0}
    run.forget_metrics_after(5)
    assert run.metrics.read_text() == '{"step": 0, "a": 1.0}\n{"step": 5, "a": 2.0}\n'


def test_the_lowest_value_of_a_metric_is_the_one_that_is_told(tmp_path):
    run = Run(tmp_path)
    assert run.lowest("validation/score") is None
    run.metrics.write_text(
        '{"step": 0, "validation/score": 1.0}\n{"step": 5, "validation/score": 0.2}\n'
        '{"step": 6, "a": 0.0}\n{"step": 10, "validation/score": NaN}\n{"step": 15, "validation/score": 0.3}\n'
    )
    assert run.lowest("validation/score") == (5, 0.2)
    said = RunSummary(run, "finished", config.Train(steps=15)).describe()
    assert "mean W1/sigma 0.2000 on held-out events, at step 5" in said


@pytest.mark.parametrize(
    ("outcome", "train", "said"),
    [
        ("finished", {"steps": 15}, "train.steps = 15"),
        ("finished", {"steps": 15, "max_seconds": 900.0}, "train.steps = 15"),
        ("finished", {"max_seconds": 4.5}, "train.max_seconds = 4.5 after 15 steps; train.max_seconds=none removes this limit"),
        (
            "finished",
            {"steps": 200_000, "max_seconds": 4.5},
            "train.max_seconds = 4.5 after 15 steps of train.steps = 200000; train.max_seconds=none removes this limit",
        ),
        ("interrupted", {"steps": 20}, "a request to stop (Ctrl-C or a signal) after 15 steps"),
    ],
)  # fmt: skip
def test_the_last_line_says_what_ended_the_run(tmp_path, outcome, train, said):
    run = Run(tmp_path)
    run.metrics.write_text('{"step": 15, "progress/seconds": 4.6}\n')
    last = RunSummary(run, outcome, config.Train(**train)).describe().splitlines()[-1]
    assert last == f"ended    by {said}"


def test_runs_of_a_ray_job_outlive_its_working_directory(tmp_path, monkeypatch):
    settings = config.load(None, ["train.steps=5", "run.storage_path=here"])
    monkeypatch.chdir(tmp_path)
    assert RunStorage.of(settings).directory == tmp_path / "here"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert RunStorage.of(settings).directory == Path.home() / "here"
    assert RunStorage.of(load(tmp_path)).directory == tmp_path


@pytest.mark.parametrize("value", ["[]", '"x"', "null", "{}"])
def test_a_metric_that_is_no_number_is_named(tmp_path, value):
    """The line of a thread that shows the progress ended in a traceback on the screen."""
    run = Run(tmp_path)
    run.metrics.write_text(f'{{"step": 1, "train/loss": NaN}}\n{{"step": 2, "validation/score": {value}}}\n')
    for read in (run.latest_metrics, lambda: run.lowest("validation/score")):
        with pytest.raises(
            ValueError, match=r"metrics\.jsonl is damaged: its 'validation/score' is .*, expected a number; "
        ):
            read()

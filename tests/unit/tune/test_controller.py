"""The sweep controller without trainings: which trial comes next, which is tried again, and what a sweep is continued with."""

import dataclasses
import json
import tomllib

import pytest

from crmuons import config
from crmuons.runs.location import RunStorage
from crmuons.training.trainer import NonFiniteError
from tune import directory, outcome, results
from tune.controller import SharedInputs, SweepController
from tune.options import SweepOptions
from tune.recorded import check_same_data
from tune.space import Space

SPACE = Space.from_dict(
    {"train": {"optimizer": {"lr": {"loguniform": [1e-4, 1e-1]}, "betas": {"grid": [[0.0, 0.9], [0.5, 0.99]]}}}}
)
RUN_ALL = SweepOptions(search="random", scheduler="none", samples=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, toy_events, write_toy):
    folder = tmp_path_factory.mktemp("data")
    write_toy(folder / "toy.parquet", toy_events(400))
    return config.from_dict(
        {
            "data": {"train": [str(folder)], "validation_share": 0.3},
            "model": {"width": 8, "multiplicity_width": 8},
            "train": {
                "steps": 4,
                "events_per_worker": 32,
                "validation_events": 200,
                "validate_every": 2,
                "log_every": 1,
            },
            "run": {"checkpoint_every": 2},
            "scaling": {"num_workers": 0, "threads_per_worker": 1},
            "tracking": {"enabled": False},
        }
    )


@pytest.fixture
def start(tmp_path, settings):
    """Makes a controller on one directory, as each command does."""

    def make(options=RUN_ALL, inputs_of=None, **changes):
        changed = config.changed(settings, changes)
        return SweepController(tmp_path, changed, SPACE, options, inputs_of or SharedInputs())

    return make


def test_interrupted_and_mendable_trials_are_tried_again_diverged_ones_not(start, settings):
    controller = start(dataclasses.replace(RUN_ALL, samples=3))
    trials = [controller.next_trial() for _ in range(3)]
    errors = [NonFiniteError("step 3: NaN"), OSError("no space left on device")]
    for trial, error in zip(trials, errors, strict=False):
        trial.run.failure.write_text(json.dumps({"error": str(error), "kind": type(error).__name__}))
        controller.on_end(trial.number, crashed=False)
    controller.on_end(2, crashed=True)  # Its process died more often than run.max_failures.
    states = {trial.number: (trial.state(), trial.reason()) for trial in trials}
    assert states[0] == ("diverged", "step 3: NaN")
    assert states[1] == ("failed", "no space left on device")
    assert states[2] == ("failed", "its process died more than run.max_failures = 3 times")
    assert controller.all_ended()
    again = start(dataclasses.replace(RUN_ALL, samples=3))
    assert [again.next_trial().number for _ in range(2)] == [1, 2]
    assert again.next_trial() is None
    assert again.trials[1].state() == "unfinished"


def test_a_request_to_stop_reaches_every_trial_and_no_other_one_begins(start):
    controller = start()
    trials = [controller.next_trial() for _ in range(2)]
    controller.on_end(0, crashed=False)
    controller.stop()
    assert not trials[0].run.stop_request.exists()
    assert trials[1].run.stop_request.exists()
    assert controller.next_trial() is None
    assert not controller.all_ended()
    assert not start().next_trial().run.stop_request.exists()


def test_where_nothing_can_be_written_no_other_trial_begins_and_the_reason_is_kept(start):
    controller = start()
    trial = controller.next_trial()
    trial.run.failure.mkdir()  # A directory: the file with the reason cannot be written.
    controller.on_end(trial.number, crashed=True)
    assert isinstance(controller.write_error, IsADirectoryError)
    assert controller.next_trial() is None
    trial.run.failure.rmdir()
    assert start().next_trial().number == trial.number


def test_data_are_prepared_once_for_all_trials(start):
    made = []
    inputs = SharedInputs()

    def counted(settings):
        made.append(inputs(settings))
        return made[-1]

    controller = start(inputs_of=counted)
    for _ in range(2):
        controller.next_trial()
    assert len(made) == 2
    assert made[0] is made[1]


def test_preset_and_table_of_trials_that_never_reported(start, tmp_path):
    controller = start()
    trial = controller.next_trial()
    rows, best = outcome.write_results(tmp_path, [trial], SPACE)
    assert best is None
    assert not (tmp_path / "best.toml").exists()
    assert [(row["state"], row["score"], row["step"]) for row in rows] == [("unfinished", None, 0)]
    assert "unfinished" in results.lines(rows, SPACE)[1]


def test_preset_writes_every_kind_of_value_as_toml_reads_it():
    tree = {
        "a": 1,
        "b": 1e-05,
        "c": 'π "quoted" \\ \n',
        "d": [1.0, 2.0],
        "e": True,
        "f": None,
        "g": {"h": {"i": [["x"]]}},
    }
    read = tomllib.loads(results._toml(tree))
    assert read == {key: value for key, value in tree.items() if value is not None}


def test_a_sweep_is_continued_with_what_it_was_started_with(settings, tmp_path):
    named = config.changed(settings, {"run.name": "mine", "run.storage_path": str(tmp_path), "run.resume": "auto"})

    def find(settings=named, space=SPACE, options=RUN_ALL):
        definition = directory.define(settings, space, options)
        return directory.find_sweep(settings, RunStorage.of(settings), definition), definition

    place, definition = find()
    assert place == tmp_path / "mine"
    place.mkdir()
    assert find()[0] == place
    (place / "sweep.json").write_text(json.dumps(definition))
    assert find(options=dataclasses.replace(RUN_ALL, samples=30, concurrency=4))[0] == place
    other = Space.from_dict({"train": {"n_critic": {"grid": [1, 2]}}})
    with pytest.raises(
        ValueError, match=r"sweep 'mine' was started with other settings: space.*train.n_critic.grid was absent"
    ):
        find(space=other)
    with pytest.raises(ValueError, match=r"settings.train.steps was 4, is 9"):
        find(settings=config.changed(named, {"train.steps": 9}))
    with pytest.raises(ValueError, match=r"continue a sweep with run.resume=auto, or choose another run.name"):
        find(settings=config.changed(named, {"run.resume": "never"}))
    with pytest.raises(ValueError, match="needs a directory that all nodes share"):
        find(settings=config.changed(named, {"run.storage_path": "s3://bucket/runs"}))
    unnamed = config.changed(named, {"run.name": f"preset-{named.digest()}"})
    names = {find(settings=unnamed, space=space)[0].name for space in (SPACE, other)}
    assert len(names) == 2
    assert all(name.startswith("preset-sweep-") for name in names)


def test_a_sweep_continues_on_the_data_of_its_first_trial_alone(start, settings, tmp_path, toy_events, write_toy):
    folder = tmp_path / "own"
    write_toy(folder / "toy.parquet", toy_events(400))
    controller = start(**{"data.train": [str(folder)]})
    trial = controller.next_trial()
    check_same_data(trial)
    write_toy(folder / "more.parquet", toy_events(100, seed=1))
    with pytest.raises(ValueError, match=r"trial-0000 did not train on 1 new files of data\.train.*more\.parquet"):
        check_same_data(trial)
    (folder / "more.parquet").unlink()
    write_toy(folder / "toy.parquet", toy_events(300, seed=2))
    with pytest.raises(
        ValueError, match=r"1 of the 1 files that the run began with cannot be used: .*toy\.parquet has changed"
    ):
        check_same_data(trial)

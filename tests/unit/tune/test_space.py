"""Spaces, proposals and options: errors are raised before a sweep starts, and proposals depend only on the disk."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from crmuons import config
from crmuons.cli import main
from tune.options import SweepOptions, TrialResources
from tune.search import Observation, importance, propose
from tune.space import Space

SETTINGS = config.from_dict({"train": {"steps": 1000, "validate_every": 100}})
SPACE = Space.from_dict(
    {
        "train": {
            "optimizer": {"lr": {"loguniform": [1e-4, 1e-2]}, "betas": {"choice": [[0.0, 0.9], [0.5, 0.99]]}},
            "n_critic": {"randint": [1, 3]},
            "penalty": {"lambda_gp": {"uniform": [0.5, 2.0]}},
        }
    }
)
GRID = Space.from_dict({"train": {"n_critic": {"grid": [1, 2, 3]}, "events_per_worker": {"choice": [64, 128]}}})


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_default_space_is_made_of_settings_that_the_optimizer_has(kind):
    settings = config.changed(SETTINGS, {"train.optimizer.kind": kind})
    space = Space.default(settings)
    space.check(settings)
    paths = {each.path for each in space.dimensions}
    own = "train.optimizer.momentum" if kind == "sgd" else "train.optimizer.betas"
    assert paths == {
        own, "train.optimizer.generator_lr", "train.optimizer.critic_lr", "train.n_critic", "train.penalty.lambda_gp",
        "train.events_per_worker",
    }  # fmt: skip


WRONG = {
    "train.n_critc = { randint = [1, 3] }": "unknown setting 'train.n_critc'; the nearest valid one is 'train.n_critic'",
    "train.n_critic = { randint = [5, 2] }": "is empty: 5 is not below 2",
    "train.n_critic = { randint = [2, 2] }": "is empty: 2 is not below 2",
    "train.n_critic = { randint = [1.5, 2] }": "give the lowest and the highest whole number",
    "train.n_critic = { randint = [0, 2] }": "train.n_critic: Input should be greater than or equal to 1 (got 0)",
    "train.n_critic = { choice = [] }": "train.n_critic = { choice = [] } is empty",
    "train.n_critic = { choice = [1, 2, 1] }": "train.n_critic = { choice = [1, 2, 1] } names a value twice",
    "train.n_critic = { uniform = [1, 4] }": "train.n_critic: Input should be a valid integer",
    "train.n_critic = { randint = [1, 9223372036854775808] }": "reaches beyond 9223372036854775807",
    "train.optimizer.betas = { choice = [[0.0, 1.5]] }": "train.optimizer.betas.1: Input should be less than 1 (got 1.5)",
    "train.n_critic = 3": "'train.n_critic = 3' is not a dimension",
    "train.n_critic = { normal = [0, 1] }": "'train.n_critic.normal = [0, 1]' is not a dimension",
    "train.optimizer.lr = { loguniform = [0.0, 1.0] }": "has no logarithm at 0.0",
    "train.optimizer.lr = { uniform = [1e-3, nan] }": "is empty: 0.001 is not below nan",
    "data.validation_share = { uniform = [0.1, 0.2] }": "'data.validation_share' cannot be swept",
    "run.name = { choice = ['a', 'b'] }": "'run.name' cannot be swept",
    "": "nothing to vary",
    "train.n_critic = {": "is not TOML",
}


@pytest.mark.parametrize("text", WRONG, ids=str)
def test_what_is_wrong_with_a_space_is_one_sentence_of_the_command(text, tmp_path, capsys):
    (tmp_path / "preset.toml").write_text("[train]\nsteps = 10\n")
    (tmp_path / "space.toml").write_text(text)
    assert main(["sweep", str(tmp_path / "preset.toml"), "--space", str(tmp_path / "space.toml")]) == 1
    said = capsys.readouterr().err.strip()
    assert WRONG[text] in said
    assert len(said.splitlines()) == 1


def test_a_space_that_is_no_text_is_named(tmp_path, capsys):
    (tmp_path / "preset.toml").write_text("[train]\nsteps = 10\n")
    (tmp_path / "space.toml").write_bytes(b"\xff\xfe")
    assert main(["sweep", str(tmp_path / "preset.toml"), "--space", str(tmp_path / "space.toml")]) == 1
    assert "space.toml is not UTF-8 text" in capsys.readouterr().err


def test_settings_may_stand_before_and_after_the_options(tmp_path, capsys):
    (tmp_path / "preset.toml").write_text("[train]\nsteps = 10\n")
    words = ["sweep", str(tmp_path / "preset.toml"), "train.log_every=1", "--samples", "2", "train.n_critic=0"]
    assert main(words) == 1
    assert "train.n_critic: Input should be greater than or equal to 1 (got 0)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--sample-size", "3"])
    assert "unrecognized arguments: --sample-size" in capsys.readouterr().err


REFUSED = {
    SweepOptions(samples=0): "--samples 0: expected a whole number from 1 to 100000",
    SweepOptions(search="grid", scheduler="asha", samples=0): "--samples 0",
    SweepOptions(search="grid"): "a grid needs lists, and train.optimizer.lr is a range (loguniform)",
    SweepOptions(concurrency=-1): "--concurrency -1: expected",
    SweepOptions(max_seconds=math.nan): "--max-seconds nan: expected a number above 0",
    SweepOptions(gpus_per_trial=-0.5): "--gpus-per-trial -0.5: expected 0 to 4096; 0 trains on CPUs",
    SweepOptions(gpus_per_trial=math.nan): "--gpus-per-trial nan: expected 0 to 4096",
    SweepOptions(seed=-1): "--seed -1: expected a whole number from 0",
    SweepOptions(reduction=math.inf): "--reduction inf: expected a number above 1",
    SweepOptions(reduction=1.0): "--reduction 1: expected a number above 1",
    SweepOptions(scheduler="pbt", samples=1): "samples = 1 is no population",
}


@pytest.mark.parametrize("options", REFUSED, ids=REFUSED.values())
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match=re.escape(REFUSED[options])):
        options.check(SPACE, SETTINGS)


def test_schedulers_need_scores_before_the_end_and_populations_settings_that_can_change():
    late = config.changed(SETTINGS, {"train.validate_every": 1000})
    with pytest.raises(
        ValueError,
        match=r"asha compares trials before their end, but with train.validate_every = 1000 and train.steps = 1000 no trial",
    ):
        SweepOptions().check(SPACE, late)
    SweepOptions(scheduler="none").check(SPACE, late)
    wide = Space.from_dict({"model": {"width": {"grid": [16, 32]}}})
    with pytest.raises(ValueError, match=r"pbt changes settings in the middle of a run, and model\.width cannot"):
        SweepOptions(scheduler="pbt").check(wide, SETTINGS)


@pytest.mark.parametrize(
    ("options", "workers", "have", "room"),
    [
        (SweepOptions(), 1, {"CPU": 2}, TrialResources(2, 1.0, 0.0)),
        (SweepOptions(concurrency=2), 1, {"CPU": 16}, TrialResources(2, 8.0, 0.0)),
        (SweepOptions(concurrency=3, cpus_per_trial=0.5), 1, {"CPU": 2}, TrialResources(3, 0.5, 0.0)),
        (SweepOptions(concurrency=4), 1, {"CPU": 16, "GPU": 1}, TrialResources(4, 4.0, 0.25)),
        (SweepOptions(gpus_per_trial=0.5), 1, {"CPU": 16, "GPU": 2}, TrialResources(4, 4.0, 0.5)),
        (
            SweepOptions(concurrency=50),
            1,
            {"CPU": 20},
            TrialResources(20, 1.0, 0.0),
        ),  # At most one per trial of the sweep.
        (SweepOptions(gpus_per_trial=0), 1, {"CPU": 4, "GPU": 8}, TrialResources(4, 1.0, 0.0)),
        (SweepOptions(), 2, {"CPU": 9}, TrialResources(4, 2.0, 0.0)),  # One CPU is left to read the data.
        (SweepOptions(), 2, {"CPU": 16, "GPU": 4}, TrialResources(2, 2.0, 2.0)),
    ],
)
def test_trials_share_the_cluster(options, workers, have, room):
    scaling = config.Scaling(num_workers=workers)
    assert TrialResources.of(options, scaling, have, 20) == room


@pytest.mark.parametrize(
    ("options", "workers", "have", "said"),
    [
        (
            SweepOptions(concurrency=3),
            1,
            {"CPU": 2},
            r"concurrency = 3 trials with 1 CPUs each need 3, but the cluster has 2",
        ),
        (SweepOptions(cpus_per_trial=4), 1, {"CPU": 2}, r"concurrency = 1 trials with 4 CPUs each"),
        (SweepOptions(concurrency=2, gpus_per_trial=1), 1, {"CPU": 8, "GPU": 1}, "2 trials with 1 GPUs each need 2"),
        (
            SweepOptions(gpus_per_trial=0.5),
            2,
            {"CPU": 8, "GPU": 1},
            "each of scaling.num_workers = 2 takes a whole GPU",
        ),
        (SweepOptions(gpus_per_trial=1), 1, {"CPU": 8}, "trials with 1 GPUs each need"),
        (
            SweepOptions(scheduler="pbt"),
            1,
            {"CPU": 2},
            "pbt runs its whole population at once: 20 trials, but concurrency is 2",
        ),
    ],
)
def test_more_than_there_is_is_refused(options, workers, have, said):
    with pytest.raises(ValueError, match=said):
        TrialResources.of(options, config.Scaling(num_workers=workers), have, 20)


def test_samples_lie_in_the_space_and_fill_it():
    drawn = [propose("random", SPACE, 0, number, []) for number in range(400)]
    lrs = np.array([values["train.optimizer.lr"] for values in drawn])
    assert 1e-4 <= lrs.min() < 1.2e-4
    assert 0.9e-2 < lrs.max() <= 1e-2
    assert 0.4 < (lrs < 1e-3).mean() < 0.6  # Uniform in the logarithm: half below the middle.
    assert {values["train.n_critic"] for values in drawn} == {1, 2, 3}
    assert {tuple(values["train.optimizer.betas"]) for values in drawn} == {(0.0, 0.9), (0.5, 0.99)}
    assert propose("random", SPACE, 0, 7, []) == drawn[7] != propose("random", SPACE, 1, 7, [])


def test_grid_has_each_combination_once():
    seen = [propose("grid", GRID, 5, number, []) for number in range(6)]
    assert len({tuple(values.values()) for values in seen}) == 6
    assert SweepOptions(search="grid").num_trials(GRID) == 6
    assert SweepOptions(search="grid", samples=4).num_trials(GRID) == 4


def test_tpe_comes_nearer_to_the_best_than_chance_and_repeats_itself():
    """Score: how far the learning rate is from 1e-3, in decades; diverged above 5e-3. One trial runs still."""

    def run(method):
        tried: list[Observation] = []
        for number in range(40):
            values = propose(method, SPACE, 3, number, tried)
            lr = values["train.optimizer.lr"]
            tried.append(
                Observation(values, math.inf if lr > 5e-3 else None if number == 20 else abs(math.log10(lr / 1e-3)))
            )
        return tried

    tpe, chance = run("tpe"), run("random")
    mean = {name: np.mean([t.score for t in tried[20:] if t.score is not None and t.score < 9])
            for name, tried in (("tpe", tpe), ("chance", chance))}  # fmt: skip
    assert mean["tpe"] < 0.6 * mean["chance"]
    assert propose("tpe", SPACE, 3, 39, tpe[:39]) == tpe[39].values
    shares = importance(SPACE, tpe)
    assert max(shares, key=shares.__getitem__) == "train.optimizer.lr"
    assert sum(shares.values()) == pytest.approx(1)


def test_perturbed_values_stay_in_the_space_and_move():
    random = np.random.default_rng(0)
    start = {
        "train.optimizer.lr": 9e-3,
        "train.optimizer.betas": [0.0, 0.9],
        "train.n_critic": 3,
        "train.penalty.lambda_gp": 1.0,
    }
    moved = [SPACE.perturb(start, random) for _ in range(50)]
    assert {round(values["train.penalty.lambda_gp"], 6) for values in moved} == {0.8, 1.25}
    assert {values["train.n_critic"] for values in moved} == {2, 3}
    assert {round(values["train.optimizer.lr"], 6) for values in moved} == {7.2e-3, 1e-2}
    assert {tuple(values["train.optimizer.betas"]) for values in moved} == {(0.0, 0.9), (0.5, 0.99)}


def test_missing_space_and_spaces_of_other_files_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no space at"):
        Space.load(Path(tmp_path / "none.toml"))
    assert Space.from_dict(SPACE.to_dict()) == SPACE

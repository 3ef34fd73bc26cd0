"""`crmuons train --ensemble`: the members, their join, what continues it and what is refused; then generate and evaluate."""

import json

import pytest

from crmuons.cli import main
from crmuons.generation.load import load_generator, model_digest
from crmuons.runs.directory import Run

SMALL = (
    "scaling.num_workers=0", "scaling.threads_per_worker=1", "train.log_every=1", "train.validate_every=2", "train.steps=2",
    "train.events_per_worker=64", "train.validation_events=600", "run.checkpoint_every=2", "model.width=8",
    "model.multiplicity_width=8", "model.multiplicity_components=2", "tracking.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory, toy_events, write_toy):
    """Data, and an ensemble of two."""
    root = tmp_path_factory.mktemp("ensemble")
    write_toy(root / "data" / "0.parquet", toy_events(700, seed=1))
    write_toy(root / "truth" / "0.parquet", toy_events(300, seed=2))
    (root / "small.toml").touch()
    assert train(root, "run.name=both", "--ensemble", "2") == 0
    return root


def train(root, *words):
    place = f"run.storage_path={root / 'runs'}"
    return main(["train", str(root / "small.toml"), *SMALL, f"data.train={root / 'data'}", place, *words])


def test_members_differ_in_seed_and_in_the_showers_that_validate_them(root):
    runs = [Run(root / "runs" / f"both-member-{number}") for number in range(2)]
    assert [run.stored_settings().run.seed for run in runs] == [0, 1]
    first, second = ({tuple(row) for row in run.load_validation().ids.tolist()} for run in runs)
    assert first
    assert second
    assert not first & second
    generator = load_generator(root / "runs" / "both")
    assert [model_digest(member) for member in generator.members] == [
        model_digest(load_generator(run.directory)) for run in runs
    ]
    # Every shower but those of the test trained a member: evaluate's split "train" must be all of them.
    assert generator.metadata["config"]["data"]["validation_share"] == 0


def test_the_same_command_continues_and_keeps_what_is_trained(root, capsys):
    digests = [model_digest(load_generator(root / "runs" / f"both-member-{number}")) for number in range(2)]
    before = (root / "runs" / "both" / "model" / "weights.pt").stat().st_mtime_ns
    # As after a kill before the last member's end.
    (root / "runs" / "both-member-1" / "done.json").unlink()
    assert train(root, "run.name=both", "run.resume=auto", "--ensemble", "2") == 0
    assert (root / "runs" / "both" / "model" / "weights.pt").stat().st_mtime_ns == before
    assert [member["digest"] for member in load_generator(root / "runs" / "both").metadata["members"]] == digests


def test_more_steps_train_every_member_on(root):
    assert train(root, "run.name=longer", "--ensemble", "2") == 0
    before = model_digest(load_generator(root / "runs" / "longer"))
    assert train(root, "run.name=longer", "run.resume=auto", "train.steps=4", "--ensemble", "2") == 0
    metrics = [Run(root / "runs" / f"longer-member-{number}").latest_metrics()["step"] for number in range(2)]
    assert metrics == [4, 4]
    assert model_digest(load_generator(root / "runs" / "longer")) != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run.name=both", "run.resume=auto", "--ensemble", "3"], "was begun with 2 members, not 3"),
        (["run.name=both", "--ensemble", "2"], "continue it with run.resume=auto"),
        (["run.name=both-member-0", "--ensemble", "2"], "is a single run"),
        (["run.name=new", "data.fold=[0,2]", "--ensemble", "2"], "leave data.fold out"),
        (["run.name=new", "data.fold=[2,2]"], "expected \\[k,K\\]"),
    ],
)
def test_what_is_no_ensemble_is_refused_in_a_sentence(root, capsys, words, message):
    assert train(root, *words) == 1
    error = capsys.readouterr().err
    assert message.replace("\\", "") in error
    assert "Traceback" not in error


@pytest.mark.parametrize("number", ["0", "1", "-1", "101", "two"])
def test_a_number_that_makes_no_ensemble_is_refused(root, capsys, number):
    with pytest.raises(SystemExit):
        train(root, "run.name=new", "--ensemble", number)
    assert "--ensemble" in capsys.readouterr().err


def test_a_run_does_not_begin_from_an_ensemble(root, capsys):
    assert train(root, "run.name=child", f"train.init_from={root / 'runs' / 'both'}") == 1
    assert "is an ensemble of 2 models" in capsys.readouterr().err
    assert not (root / "runs" / "child").exists() or not (root / "runs" / "child" / "config.json").exists()


def test_an_unfinished_ensemble_says_so(root, capsys, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "ensemble.json").write_text('{"members": 2}')
    with pytest.raises(FileNotFoundError, match="are not trained yet"):
        load_generator(tmp_path / "begun")


def test_an_ensemble_at_a_url_loads_from_there(root):
    place = f"local://{root}/remote"
    assert train(root, "run.name=away", f"run.storage_path={place}", "--ensemble", "2") == 0
    assert len(load_generator(f"{place}/away").members) == 2


def test_evaluate_gives_the_band_and_its_coverage(root, tmp_path):
    words = ["--truth", str(root / "truth"), "--split", "all", "--events", "400", "--workers", "0"]
    assert not main(["evaluate", *words, "--model", str(root / "runs" / "both"), "--out", str(tmp_path / "report")])
    found = json.loads((tmp_path / "report" / "evaluation.json").read_text())["members"]
    assert found["number"] == 2
    assert found["coverage"]["all events"]["bins"] == sum(one["where"] == "all events" for one in found["bins"]) > 10
    assert found["figures"]["mean_muons_ratio"]["spread"] > 0
    assert "Spread of the 2 members" in (tmp_path / "report" / "report.html").read_text()


def test_runs_join_to_an_ensemble(root, tmp_path, capsys):
    members = [str(root / "runs" / f"both-member-{number}") for number in range(2)]
    assert not main(["ensemble", *members, "--out", str(tmp_path / "joined")])
    assert model_digest(load_generator(tmp_path / "joined")) == model_digest(load_generator(root / "runs" / "both"))
    assert main(["ensemble", members[0], members[0], "--out", str(tmp_path / "twice")]) == 1
    assert "given twice" in capsys.readouterr().err

"""Settings: one tree, refused with the nearest valid name where a name is wrong, and later ones win."""

import json
import subprocess
from pathlib import Path

import pytest

from crmuons import config
from crmuons.commands import settings_of
from crmuons.config.hints import LEFT_OUT, OTHER_NAMES


def load(*words, preset=None):
    return config.load(preset, ["train.steps=5", *words])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.step=5", "unknown setting 'train.step'; the nearest valid one is 'train.steps'"),
        (
            "train.optimizer.lrr=1",
            "unknown setting 'train.optimizer.lrr'; the nearest valid one is 'train.optimizer.lr'",
        ),
        (
            "train.dropout=5",
            "unknown setting 'train.dropout', and no setting is like it; use one that `crmuons settings` lists",
        ),
        ("model.batchnorm=5", "unknown setting 'model.batchnorm', and no setting is like it"),
        ("train.activation=5", "unknown setting 'train.activation', and no setting is like it"),
        ("trian.steps=5", "unknown setting 'trian.steps'; the nearest valid one is 'train.steps'"),
        ("lambda_gp=5", "unknown setting 'lambda_gp'; the nearest valid one is 'train.penalty.lambda_gp'"),
        ("train.steps", "'train.steps' is not of the form section.key=value"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1 (got 0)"),
        ("train.steps=many", "train.steps: .*integer.*(got 'many')"),
        ("train.steps=1.5", "train.steps: .*(got 1.5)"),
        ("train.loss=hinge", "train.loss: Input should be 'wasserstein' or 'relativistic' (got 'hinge')"),
        ("train=5", "train: .*(got 5)"),
        ("train.optimizer=adam", "train.optimizer: .*(got 'adam')"),
        ("train.optimizer.lr=inf", "train.optimizer.lr: .*finite"),
        ("train.max_seconds=nan", "train.max_seconds: .*finite"),
        ("run.seed=-1", "run.seed: "),
        ("run.seed=9223372036854775808", "run.seed: "),
        ("run.name=..", "run.name: .*a name of letters"),
        ("run.name=a/b", "run.name: .*a name of letters"),
        ("data.validation_share=1.0", "data.validation_share: Input should be less than 1 (got 1.0)"),
        ("data.validation_share=0.96", "validation_share 0.96 + test_share 0.05 leave nothing to train on"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(word, said):
    with pytest.raises(ValueError, match=r"\w") as caught:
        load(word)
    position = 0
    for part in said.split(".*"):
        assert part in str(caught.value)[position:]
        position = str(caught.value).index(part, position) + len(part)


def test_every_fault_is_told_at_once():
    with pytest.raises(ValueError, match=r"train\.n_critic: .*; unknown setting 'train\.stepps'"):
        load("train.stepps=3", "train.n_critic=0")


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"neither train\.steps nor train\.max_seconds is set"):
        config.load(None, [])
    assert config.load(None, ["train.max_seconds=60"]).train.steps is None


def test_values_are_toml_and_bare_words_are_strings():
    settings = load(
        "data.train=data/sim", "train.bf16=true", "train.optimizer.lr=1e-3", "train.optimizer.betas=[0.5, 0.9]",
        'data.validation=["a", "b"]', "run.name=x-1", "scaling.use_gpu=false",
    )  # fmt: skip
    assert settings.data.train == ["data/sim"]  # One path is a list of one.
    assert settings.data.validation == ["a", "b"]
    assert settings.train.optimizer.betas == (0.5, 0.9)
    assert (settings.train.bf16, settings.train.optimizer.lr, settings.run.name) == (True, 1e-3, "x-1")
    assert settings.scaling.use_gpu is False
    assert load("data.train=pelican://host/a?b=c").data.train == ["pelican://host/a?b=c"]  # The first = alone counts.


def test_words_win_over_the_preset_and_the_preset_over_the_defaults(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text("[train]\nsteps = 7\nn_critic = 4\n[train.optimizer]\nkind = 'sgd'\n")
    settings = config.load(preset, ["train.n_critic=3", "train.n_critic=2", "train.optimizer.momentum=0.25"])
    assert (settings.train.steps, settings.train.n_critic) == (7, 2)
    assert (settings.train.optimizer.kind, settings.train.optimizer.momentum) == ("sgd", 0.25)
    assert settings.train.ema_decay == config.Train(steps=1).ema_decay
    assert settings.run.name == f"mine-{settings.digest()}"


def test_presets_that_are_missing_or_not_toml_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no preset at .*none\.toml; the presets of crmuons are base, default, demo"
    ):
        config.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[train\nsteps = 1")
    with pytest.raises(ValueError, match=r"bad\.toml is not TOML: .*line 1"):
        config.load(tmp_path / "bad.toml")


def test_the_digest_names_what_shapes_the_result():
    base = load()
    assert base.run.name == f"run-{base.digest()}"
    same = (
        "scaling.num_workers=3",
        "tracking.enabled=false",
        "tracking.tensorboard=true",
        "train.profile_steps=[1,2]",
        "train.detect_anomaly=true",
        "data.read_tasks=3",
        "data.pin_memory=false",
        "scaling.backend=gloo",
        "run.storage_path=elsewhere",
        "run.resume=auto",
    )
    assert all(load(word).run.name == base.run.name for word in same)
    other = ("run.seed=1", "train.n_critic=5", "data.train=x", "model.width=32")
    assert len({base.digest(), *(load(word).digest() for word in other)}) == 5


def test_anomaly_detection_and_graphs_exclude_each_other():
    with pytest.raises(ValueError, match=r"train: .*train.detect_anomaly reads each gradient.*train.cuda_graph=false"):
        load("train.detect_anomaly=true", "train.cuda_graph=true")


def test_every_setting_has_a_path_a_default_and_a_meaning():
    described = config.settings()
    assert set(described) == set(load().flat())
    assert all(meaning for _, meaning in described.values())
    assert described["train.steps"][0] == "unset"


def test_an_elastic_run_has_a_least_and_a_most_number_of_workers():
    scaling = load("scaling.num_workers=[2,8]").scaling
    assert (scaling.min_workers, scaling.num_workers) == (2, 8)
    assert load("scaling.num_workers=3").scaling.min_workers is None
    assert config.from_dict(load("scaling.num_workers=[2,8]").model_dump(mode="json")).scaling == scaling
    for pair, fault in (
        ("[3,2]", "minimum above its maximum"),
        ("[1,2,3]", "a number or a pair"),
        ("[0,2]", "min_workers"),
    ):
        with pytest.raises(ValueError, match=fault):
            load(f"scaling.num_workers={pair}")


def test_settings_survive_json():
    settings = load("train.optimizer.betas=[0.1, 0.2]", "data.max_muons_per_event=9")
    assert config.from_dict(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


def test_a_run_is_as_far_as_the_nearer_of_its_two_ends():
    train = config.Train(steps=100, max_seconds=10.0)
    assert train.share_done(50, 1.0) == 0.5
    assert train.share_done(50, 9.0) == 0.9
    assert config.Train(max_seconds=10.0).share_done(1000, 5.0) == 0.5
    assert config.Train(max_seconds=10.0, epochs=20.0).share_done(1000, 5.0, 16.0) == 0.8


def test_the_presets_epochs_change_no_name_of_a_run_that_was_begun_before():
    default = config.load("default", ["data.train=d"])
    assert default.train.epochs == config.sections.PRESET_EPOCHS
    names = {
        config.load("default", ["data.train=d", f"train.epochs={word}"]).run.name for word in ("1000", "none", "50")
    }
    assert len(names) == 2
    assert default.run.name in names


def test_a_preset_may_begin_with_a_byte_order_mark_and_other_encodings_are_named(tmp_path):
    preset = tmp_path / "windows.toml"
    preset.write_text("[train]\nsteps = 7\n", encoding="utf-8-sig")
    assert config.load(preset).train.steps == 7
    for encoding, named in (
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("latin-1", "byte 2"),
    ):
        preset.write_text("#müon\n[train]\nsteps = 7\n", encoding=encoding)
        with pytest.raises(ValueError, match=rf"windows\.toml is not UTF-8 text \(.*{named}\); save it as UTF-8"):
            config.load(preset)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("train.lr", "train.optimizer.lr"), ("train.batch_size", "train.events_per_worker"), ("epochs", "train.epochs"),
        ("train.num_epochs", "train.epochs"), ("gpus", "scaling.num_workers"), ("num_workers", "scaling.num_workers"),
        ("learning_rate", "train.optimizer.lr"), ("optimizer.learning-rate", "train.optimizer.lr"),
        ("lambda_gp", "train.penalty.lambda_gp"), ("n_critic", "train.n_critic"), ("critic_steps", "train.n_critic"),
        ("train.lerning_rate", "train.optimizer.lr"), ("seed", "run.seed"), ("output_dir", "run.storage_path"),
        ("optimizer.kind", "train.optimizer.kind"), ("penalty.kind", "train.penalty.kind"), ("latent_dim", "model.shower_latents"),
        ("data.batch_size", "train.events_per_worker"), ("save_every", "run.checkpoint_every"), ("BATCH_SIZE", "train.events_per_worker"),
        ("run.dir", "run.storage_path"), ("run.directory", "run.storage_path"), ("Output-Dir", "run.storage_path"),
        ("model.name", "model.kind"), ("staging.dir", "data.staging.dir"),
    ],
)  # fmt: skip
def test_a_wrong_name_gets_the_setting_that_it_means(wrong, meant):
    with pytest.raises(ValueError, match=f"unknown setting '{wrong}'; the nearest valid one is '{meant}'"):
        load(f"{wrong}=1")


def test_every_other_name_leads_to_a_setting_and_to_one_only():
    names = [name for names in OTHER_NAMES.values() for name in names.split()]
    assert len(names) == len(set(names))
    assert set(OTHER_NAMES) <= set(config.settings())
    assert not set(names) & {
        path.rpartition(".")[2] for path in config.settings()
    }  # Such a name is found without help.


def test_a_section_that_is_given_a_value_names_a_setting_in_it():
    with pytest.raises(ValueError, match=r"train\.optimizer: a section, .* 'train\.optimizer\.kind' \(got 'adam'\)"):
        load("train.optimizer=adam")


def test_presets_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("default").train.max_seconds == 900
    assert config.load("default").run.name.startswith("default-")
    (tmp_path / "default").write_text("[train]\nsteps = 7\n")
    assert config.load("default").train.steps == 7  # A file that exists wins.


def test_the_first_word_of_a_command_may_be_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings_of(["data.train=x"]) == config.load("default", ["data.train=x"])
    assert settings_of(["demo", "data.train=x"]) == config.load("demo", ["data.train=x"])
    (tmp_path / "a=b.toml").write_text("[train]\nsteps = 7\n")
    assert settings_of(["a=b.toml"]).train.steps == 7
    assert settings_of(["a=b.toml"]).run.name.startswith("a-b-")
    with pytest.raises(FileNotFoundError, match=r"no preset at train\.steps; .* form section.key=value"):
        settings_of(["train.steps"])


def test_steps_in_words_replace_the_limits_of_the_preset():
    words = config.load("default", ["train.steps=200000"]).train
    assert (words.max_seconds, words.epochs) == (None, None)
    assert config.load("default", ["train.max_seconds=60"]).train.epochs == 1000
    both = config.load("default", ["train.steps=200000", "train.max_seconds=60"]).train
    assert (both.steps, both.max_seconds) == (200_000, 60)
    assert config.load("default", ["train.steps=none"]).train.max_seconds == 900


@pytest.fixture(scope="module")
def default():
    return load("train.steps=5", "train.max_seconds=9").flat()


@pytest.mark.parametrize("path", list(config.settings()))
def test_none_unsets_any_setting(tmp_path, default, path):
    """One that can be without a value has none; another one has its default, whatever the preset says."""
    preset = tmp_path / "p.toml"
    other = {"run.name": "'mine'", "data.train": "'d'", "run.seed": "3", "train.max_seconds": "7.0"}
    section, _, key = path.rpartition(".")
    preset.write_text(
        "[train]\nsteps = 5\n" if path not in other or section == "train" else f"[{section}]\n{key} = {other[path]}\n"
    )
    words = ["train.steps=5", "train.max_seconds=9", "run.name=r", "run.name=none", f"{path}=none"]
    found = config.load(preset, words).flat()[path]
    if path in {"train.optimizer.decay", "train.penalty.kind"}:
        assert found == "none"  # A word of the setting's own.
    elif path == "run.name":
        assert found.startswith("p-")
    elif path in {"train.muons_per_event", "train.steps", "train.max_seconds"}:
        assert found is None
    else:
        assert found == default[path]


def test_none_in_a_preset_is_no_value_too(tmp_path):
    preset = tmp_path / "p.toml"
    preset.write_text("[train]\nsteps = 5\nmuons_per_event = 'none'\n")
    assert config.load(preset).train.muons_per_event is None
    with pytest.raises(ValueError, match=r"neither train\.steps nor train\.max_seconds"):
        config.load(preset, ["train.steps=none"])


@pytest.mark.parametrize(
    "word",
    [
        "model.width=1000000", "model.layers=100000", "scaling.threads_per_worker=100000", "run.seed=18446744073709551616",
        "train.events_per_worker=1000000000000", "train.validation_events=1000000000000", "train.steps=1e400", "train.max_seconds=1e300",
        "train.optimizer.betas=[nan,0.5]", "train.optimizer.betas=[0.5,inf]", "train.penalty.lambda_gp=-inf", "train.n_critic=9999999",
        "data.validation_share=nan", "run.name=" + "a" * 300, "data.train=", 'data.train=["a",""]', "tracking.experiment=",
        "train.steps=" + "9" * 5000, "data.train=" + "[" * 100_000, "a." * 100_000 + "a=1", "train." * 1000 + "steps=1",
    ],
    ids=lambda word: word[:30],
)  # fmt: skip
def test_what_no_machine_can_do_is_refused_by_its_name_in_a_short_sentence(word):
    with pytest.raises(ValueError, match=r"\w") as caught:
        load(word)
    assert word.partition("=")[0][:40] in str(caught.value) or "nested too deeply" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_preset_nested_without_end_is_refused(tmp_path):
    preset = tmp_path / "deep.toml"
    for text in ("a = " + "[" * 100_000, f"[{'.'.join('a' * 5000)}]\nb = 1\n", "a = " + "9" * 5000):
        preset.write_text(text)
        with pytest.raises(ValueError, match=r"deep\.toml is not TOML|nested too deeply|unknown setting"):
            config.load(preset, ["train.steps=5"])


def test_the_base_model_is_trained_for_steps_and_a_default_run_can_begin_from_it():
    base, default = config.load("base"), config.load("default")
    assert base.train.steps is not None
    assert base.train.max_seconds is None  # A time would give other weights on another machine.
    assert base.scaling.num_workers == 0
    assert base.model == default.model  # train.init_from refuses other networks.


def test_make_base_model_simulates_trains_and_continues():
    root = Path(__file__).parents[2]
    words = ["make", "-n", "base-model", "PYTHON=true", "BASE_EVENTS=5000", "BASE_WORDS=train.steps=3"]
    printed = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    simulated, trained = (
        next(line.split() for line in printed.splitlines() if f"crmuons {command} " in line)
        for command in ("simulate", "train")
    )
    assert "--seed" in simulated
    assert simulated[simulated.index("--events") + 1] == "5000"
    settings = config.load(trained[2], trained[3:])
    assert (settings.run.resume, settings.train.steps) == ("auto", 3)
    assert settings.data.train == [simulated[simulated.index("--out") + 1]]


@pytest.mark.parametrize(
    "word", ["train.compile=true", "compile=false", "model.torch-compile=1", "train.torch_compile_gen=true"]
)
def test_a_setting_that_is_left_out_on_purpose_gets_the_reason(word):
    """The predecessor had it, so users give it."""
    name = word.partition("=")[0]
    with pytest.raises(
        ValueError, match=rf"unknown setting '{name}': crmuons leaves it out, because it does not pay: 35 CPU-sec"
    ):
        config.load(None, ["train.steps=1", word])


def test_no_name_is_both_left_out_and_another_name_of_a_setting():
    left_out = {name for names in LEFT_OUT for name in names.split()}
    assert not left_out & {name for names in OTHER_NAMES.values() for name in names.split()}
    assert not left_out & {path.rpartition(".")[2] for path in config.settings()}

"""docs/coming-from-cr_muons.md has a row for each option of the predecessor, and what a row names exists."""

import argparse
import re
from pathlib import Path

import pytest
import torch

from crmuons import cli, config
from crmuons.models.features import muon_to_network

PAGE = (Path(__file__).parents[3] / "docs" / "coming-from-cr_muons.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]

# Of training/train.py at bdff8ed.
TRAIN = [
    "--infiles",
    "--use-hf",
    "--parquet-batch-reader",
    "--shuffle",
    "--shuffle-seed",
    "--prefetch-batches",
    "--num-workers",
    "--prefetch-factor",
    "--persistent-workers",
    "--pin-memory",
    "--max-muons-per-batch",
    "--max-muons-per-event",
    "--preflight-muon-threshold",
    "--cuda-empty-cache-interval",
    "--cuda-empty-cache-threshold-mib",
    "--drop-empty-events",
    "--outliers-dir",
    "--batch-size",
    "--multi-file-shuffle",
    "--critic-steps",
    "--critic-step",
    "--adaptive-critic",
    "--w-ma-low",
    "--w-ma-high",
    "--critic-steps-min",
    "--critic-steps-max",
    "--lambda-gp-min",
    "--lambda-gp-max",
    "--gp-adapt-factor",
    "--torch-compile",
    "--torch-compile-gen",
    "--torch-compile-critic",
    "--allow-tf32",
    "--log-interval",
    "--tb-logdir",
    "--tb-run-name",
    "--tb-log-interval",
    "--tb-hist-interval",
    "--tb-max-muons",
    "--tb-sync-to",
    "--tb-sync-interval",
    "--tb-io",
    "--critic-pooling",
    "--report-first-batch",
    "--memory-cache-mb",
    "--prefetch-dir",
    "--prefetch-delete-after-use",
    "--prefetch-max-files",
    "--prefetch-ahead",
    "--federation-url",
    "--token",
    "--auto-token",
    "--pelican-scope-path",
    "--pelican-oidc-url",
    "--pelican-auth-cache-file",
    "--pelican-storage-prefix",
    "--checkpoint",
    "--model-checkpoint",
    "--checkpoint-io",
    "--device",
    "--print-file-contents",
    "--print-max-events",
    "--optimizer",
    "--lr",
    "--momentum",
    "--cond-dim",
    "--feat-dim",
    "--latent-dim-global",
    "--latent-dim-local",
    "--hidden-dim",
    "--lambda-gp",
    "--grad-clip-norm",
    "--gp-max-pairs",
    "--gp-sample-fraction",
    "--gp-every",
    "--profile-steps",
    "--detect-anomaly",
    "--dist-backend",
]


def options_of(command):
    parser = argparse.ArgumentParser()
    command.add(parser)
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    return {option for each in parsers for action in each._actions for option in action.option_strings}


def test_every_option_of_the_predecessors_training_has_a_row():
    named = {option for row in ROWS for option in re.findall(r"`(-[-\w]+)`", row[0])}
    assert not set(TRAIN) - named


def test_a_row_says_what_the_option_was_and_what_it_is_or_why_not():
    assert len(ROWS) > 90
    assert all(len(row) == 3 and all(row) for row in ROWS)


def test_every_setting_that_a_row_names_exists():
    sections = r"(?:run|data|model|train|scaling|tracking)"
    named = {name for row in ROWS for name in re.findall(rf"`({sections}\.[\w.]+)", row[2])}
    assert len(named) > 40
    assert not named - set(config.settings())


@pytest.mark.parametrize("row", [row for row in ROWS if "`crmuons " in row[2]], ids=lambda row: row[0])
def test_every_command_that_a_row_names_has_its_options(row):
    commands = {cli.name_of(command): command for group in cli.GROUPS.values() for command in group}
    for words in re.findall(r"`crmuons ([^`]+)`", row[2]):
        name, *rest = words.split()
        assert {word for word in rest if word.startswith("--")} <= options_of(commands[name]), words


def test_the_numbers_of_the_predecessors_output_in_features_come_from_the_function_that_the_page_names():
    assert "`crmuons.models.features.muon_to_network`" in PAGE
    found = muon_to_network(torch.tensor([[1e3, 50.0, -250.0]]))
    assert found[0].tolist() == pytest.approx([-3.0, 0.1, -0.5])  # 1 TeV is 1e-3 PeV; 50 m / 500 m.

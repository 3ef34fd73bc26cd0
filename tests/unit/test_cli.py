"""The command line as a whole: its help names every command once, and the reference of the settings is complete."""

import pkgutil
import re
from collections import Counter

import pytest

from crmuons import cli, commands, config


def test_every_command_stands_in_exactly_one_group():
    modules = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    assert Counter(cli.name_of(command) for group in cli.GROUPS.values() for command in group) == Counter(modules)


def test_help_lists_the_groups_with_their_commands_and_ends_with_three_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for title, group in cli.GROUPS.items():
        block = text.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in block.splitlines()] == [cli.name_of(command) for command in group]
        for command in group:
            assert command.__doc__ in block
            assert "\n" not in command.__doc__
    examples = text.split("most people need three commands:\n")[1].splitlines()
    assert len(examples) == 3
    for example in examples:
        assert example.split()[0] == "crmuons"
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", [cli.name_of(command) for group in cli.GROUPS.values() for command in group])
def test_every_command_has_its_own_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: crmuons {name} [-h]")


def test_a_wrong_command_is_named_beside_the_right_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trian"])
    assert re.search(r"COMMAND: invalid choice: 'trian' .*simulate.*train.*benchmark", capsys.readouterr().err)


def test_the_markdown_reference_has_a_row_for_every_setting_below_its_section(capsys):
    assert cli.main(["settings", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    section, rows = "", {}
    for line in lines:
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if line.startswith("| `"):
            path, default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            assert path.strip("`").rpartition(".")[0] == section
            rows[path.strip("`")] = (default[1:-1].replace(r"\|", "|"), meaning.replace(r"\|", "|"))
    assert rows == {
        path: (default, " ".join(meaning.split())) for path, (default, meaning) in config.settings().items()
    }
    assert lines[0] == "# Settings"


def test_settings_without_options_gives_every_setting_with_its_meaning(capsys):
    assert cli.main(["settings"]) == 0
    out = capsys.readouterr().out
    assert "data.shuffle_bytes = 33554432\n    " in out
    assert all(f"{path} = " in out for path in config.settings())


def test_an_option_that_is_a_setting_is_told_as_a_word(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "default", "--epochs", "10", "--lr=1e-3"])
    said = capsys.readouterr().err
    assert "unrecognized arguments: --epochs --lr=1e-3; a setting is a word without dashes" in said
    assert "train.steps=VALUE train.optimizer.lr=VALUE" in said

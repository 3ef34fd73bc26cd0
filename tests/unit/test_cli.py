"""The command line as a whole: its help names every command once, and the reference of the settings is complete."""

import argparse
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


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "--events", "10", "--out"],
        ["generate", "--model", "m", "--spectrum", "events=1", "--out"],
        ["evaluate", "--truth", "t", "--model", "m", "--out"],
        ["export", "m", "--out"],
        ["convert", "corsika", "x", "--out"],
    ],
)
@pytest.mark.parametrize(
    ("place", "says"),
    [("memory://x", "'memory://x' lasts only as long as this command"), ("", "the name of the output is empty")],
)
def test_an_output_that_keeps_nothing_is_refused(words, place, says, capsys):
    assert cli.main([*words, place]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_runs_are_not_kept_in_memory(command, tmp_path, capsys):
    (tmp_path / "p.toml").write_text("[train]\nsteps = 1\n")
    assert cli.main([command, str(tmp_path / "p.toml"), "data.train=x", "run.storage_path=memory://runs"]) == 1
    assert "'memory://runs' lasts only as long as this command" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["data.train", "data.validation", "run.storage_path", "data.staging.dir"])
@pytest.mark.parametrize("value", ["", "  ", '["", "x"]'])
def test_an_empty_path_in_the_settings_is_refused(setting, value):
    with pytest.raises(ValueError, match=rf"{setting}: .*(an empty path, perhaps from a variable|valid string)"):
        config.load(None, ["train.steps=1", f"{setting}={value}"])


def test_bundles_are_not_written_among_their_primaries(tmp_path):
    from crmuons.commands import generate

    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.parquet").touch()
    arguments = argparse.Namespace(
        primaries=[str(tmp_path / "p")], out=str(tmp_path / "p" / "out"), counts="predict", vertical=False
    )
    with pytest.raises(ValueError, match="lies inside the data directory"):
        generate._primaries(arguments)

"""The command line as a whole: its help names every command once, and the reference of the settings is complete."""

import argparse
import errno
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from crmuons import cli, commands, config, unforeseen
from crmuons.config.options import Reader, Share, option


def test_the_reader_of_a_type_is_made_once():
    assert option(Share)._adapter is option(Share)._adapter  # A millisecond each, and a command has dozens.


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
    [
        ("memory://x", "'memory://x' lasts only as long as this command"),
        ("", "--out: the name is empty, perhaps from a variable that is not set"),
    ],
)
def test_an_output_that_keeps_nothing_is_refused(words, place, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, place])
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
        primaries=[str(tmp_path / "p")], out=str(tmp_path / "p" / "out"), counts="predict", vertical=False, surface=None
    )
    with pytest.raises(ValueError, match="lies inside the data directory"):
        generate._primaries(arguments)


def test_an_option_that_is_a_setting_is_told_as_a_word(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "default", "--epochs", "10", "--lr=1e-3"])
    said = capsys.readouterr().err
    assert "unrecognized arguments: --epochs --lr=1e-3; a setting is a word without dashes" in said
    assert "train.epochs=VALUE train.optimizer.lr=VALUE" in said


NAMES = [cli.name_of(command) for group in cli.GROUPS.values() for command in group]


def fail(*_: object) -> None:
    url = "https://me:hidden1@example.org/a.parquet?access_token=hidden2&x=1"
    msg = f"cannot read {url} with s3cr3t-of-the-environment"
    raise KeyError(msg)


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """Every command fails as none should; reports go to a directory of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-the-environment")
    for group in cli.GROUPS.values():
        for command in group:
            monkeypatch.setattr(command, "run", fail)
            monkeypatch.setattr(command, "add", lambda parser: parser.add_argument("words", nargs="*"))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_an_error_that_nobody_foresaw_is_one_sentence_and_a_report_without_secrets(name, failing, capsys):
    assert cli.main([name, "run.seed=7"]) == 70
    (said,) = capsys.readouterr().err.splitlines()
    (report,) = failing.iterdir()
    assert said.startswith(f"crmuons {name}: an error that crmuons did not foresee (KeyError: ")
    assert said.endswith(f"please report it with the file {report}")
    text = report.read_text()
    for expected in (
        "Traceback (most recent call last)",
        "in fail",
        "run.seed=7",
        "crmuons_version: ",
        "torch_version: ",
        "python: ",
    ):
        assert expected in text
    for secret in ("hidden", "s3cr3t"):
        assert secret not in text
        assert secret not in said
    assert report.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("words", [["--debug", "train"], ["train", "--debug"], ["train", "a=1", "--debug", "b=2"]])
def test_the_traceback_is_on_the_screen_with_debug(words, failing, capsys):
    assert cli.main(words) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_the_sentence(failing, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(failing / "none"))
    assert cli.main(["train"]) == 70
    assert (
        "no report could be written (No such file or directory); --debug shows the traceback" in capsys.readouterr().err
    )


def test_an_error_while_the_options_are_read_is_one_sentence_too(failing, monkeypatch, capsys):
    monkeypatch.setattr("crmuons.commands.train.add", fail)
    assert cli.main(["train"]) == 70
    assert len(capsys.readouterr().err.splitlines()) == 1


def options_of(parser):
    """Yield all arguments of a parser and of the parsers below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options_of(below)
        else:
            yield parser.prog, action


def test_every_option_that_takes_a_value_has_a_type_that_refuses_what_cannot_be():
    words = sorted(cli.NAMES)
    checked = 0
    for command, action in options_of(cli._parser(words)):
        if (
            action.nargs == 0 or action.choices is not None or action.dest == "words"
        ):  # Settings have types of their own.
            continue
        assert isinstance(action.type, Reader), f"{command} {action.option_strings or action.dest}: type=option(KIND)"
        checked += 1
        for word in ("", "nan", "inf", "-inf", "1e400", str(2**64), "9" * 5000, "-1"):
            with suppress(argparse.ArgumentTypeError):
                value = action.type(word)
                assert isinstance(value, str | Path), f"{command} {action.option_strings} took {word} as {value!r}"
    assert checked > 60


@pytest.mark.parametrize(
    "words", [[], ["--gamma=nan"], ["--gamma", "-1e5"], ["--depths", "-inf"], ["--seed", str(2**64)]]
)
def test_a_wrong_option_is_one_line_that_names_it(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["simulate", "--events", "1", "--out", "x", *words] if words else ["simulate"])
    (said,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word.split("=")[-1] in said
    assert "expected" in said if words else "required: --events, --out" in said


@pytest.mark.parametrize("lines", [2, 30_000])
def test_a_command_whose_reader_has_enough_ends_quietly(lines):
    """As `crmuons settings | head -1`: with a short output only the last flush meets the closed pipe."""
    code = f"from crmuons.unforeseen import guarded; guarded('crmuons x', lambda: [print(n) for n in range({lines})] and 0, [])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        command.stdout.close()
        assert command.stderr.read() == b""


def test_a_connection_that_breaks_is_an_error_all_the_same(capsys):
    def broken():
        raise BrokenPipeError(errno.EPIPE, "the server at example.org went away")

    assert unforeseen.guarded("crmuons x", broken, []) == 1
    assert "the server at example.org went away" in capsys.readouterr().err

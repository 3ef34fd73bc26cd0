"""What a stranger named or said cannot move the cursor, hide a line or turn the direction of reading on the screen."""

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crmuons import cli
from crmuons.storage.redact import MAX_LINE, MessageFormatter, message, printable
from tests.toy import make_events, write_file

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("muons.parquet", "muons.parquet"), ("a\tb\nc", "a\tb\nc"), ("Müller, 10 µm, ±1 σ, 宇宙線", "Müller, 10 µm, ±1 σ, 宇宙線"),
        ("\x1b[2Jx", r"\x1b[2Jx"), ("\x1b]0;title\x07", r"\x1b]0;title\x07"), ("\x9b2J", r"\x9b2J"), ("a\rb", r"a\rb"),
        ("a\0b\x08\x7f", r"a\x00b\x08\x7f"), ("a\x0bb\x0c", r"a\x0bb\x0c"), ("a\x85b\u2028c\u2029", r"a\x85b\u2028c\u2029"),
        ("gnp.\u202egpj", r"gnp.\u202egpj"), ("\u2066x\u2069\u061c\u200f", r"\u2066x\u2069\u061c\u200f"),
        ("ze\u200bro\ufeff\u00ad", r"ze\u200bro\ufeff\xad"), ("\U000e0041", r"\U000e0041"), ("\udce4", r"\udce4"), ("\ud83d\ude00", r"\ud83d\ude00"),
        (3.5, "3.5"), (Path("a"), "a"), ("", ""),
    ],
)  # fmt: skip
def test_a_text_shows_what_it_holds(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown  # Once more changes nothing.


def test_every_character_that_is_not_shown_is_written_out():
    # All of the planes that have signs, and the tags; of the others, ideographs and what is unassigned, some.
    codes = {*range(0x20000), *range(0xE0000, 0xE1000), *range(0x20000, sys.maxunicode + 1, 101)}
    shown = printable("".join(map(chr, codes)))
    assert {letter for letter in shown if not letter.isprintable()} == {"\t", "\n"}


def test_a_message_keeps_the_end_of_a_long_line_where_the_remedy_stands():
    name = "x" * 10**6
    text = message(
        f"column '{name}' is not known\nhttps://me:hunter2@h/x?token=hunter2; rename it {name}; give it a shorter name"
    )
    assert max(map(len, text.split("\n"))) <= MAX_LINE + 10
    assert text.startswith("column 'xxx")
    assert text.endswith("; give it a shorter name")
    assert "hunter2" not in text
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s \x1b[2J", (name,), None)
    assert len(MessageFormatter("%(message)s").format(record)) <= MAX_LINE + 10
    assert "\x1b" not in MessageFormatter("%(message)s").format(record)


def test_every_print_of_the_program_is_of_a_printable_text():
    left = []
    for path in (path for package in ("crmuons", "tune", "jobs") for path in (ROOT / package).rglob("*.py")):
        if path.name in (
            "bundles.py",
            "standalone.py",
        ):  # Copied to users without crmuons: they show numbers of their own.
            continue
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if "print(" in source else ():  # Parsing all takes a second.
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and node.args:
                first = node.args[0]
                is_safe = isinstance(first, ast.Call) and getattr(first.func, "id", "") in ("printable", "message")
                if not (is_safe or isinstance(first, ast.Constant)):
                    left.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert left == []


@pytest.mark.parametrize("name", ["\x1b[2Jx.parquet", "x\rdone.parquet", "x\u202ey.parquet", "\udce4.parquet"])
def test_a_file_of_such_a_name_is_named_as_it_is(name, tmp_path, capsys):
    write_file(tmp_path / "data" / "sound.parquet", make_events(20, seed=0))
    (tmp_path / "data" / "sound.parquet").rename(tmp_path / "data" / name)
    cli.main(["inspect", str(tmp_path / "data")])
    (tmp_path / "data" / name).write_bytes(b"PAR1 no more")
    assert cli.main(["inspect", str(tmp_path / "data")]) == 1
    said = "".join(capsys.readouterr())
    assert printable(name) in said
    assert not {letter for letter in said if not letter.isprintable()} - {"\n", "\t", "\r"}
    assert f"{name}" not in said


def test_a_file_whose_name_is_not_utf_8_is_converted(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    write_file(tmp_path / "sound.parquet", make_events(20, seed=0))
    (tmp_path / "sound.parquet").rename(tmp_path / "data" / "\udce4\x1b[2J.parquet")
    assert cli.main(["convert", "parquet", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out").glob("*.parquet")
    assert written.name.isprintable()
    capsys.readouterr()


def test_a_terminal_that_is_not_utf_8_shows_signs_as_escapes():
    # Without it `crmuons settings` ended in "'ascii' codec can't encode character".
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    code = "import sys; from crmuons import cli; sys.stdout.write('\\n'); cli._run(['settings']); print('\\u00b1')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("\\xb1\n"), done.stderr


def test_the_output_of_a_command_may_be_any_stream(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert cli.main(["settings"]) == 0

"""What holds for every document that people write by hand."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from crmuons import cli, config

ROOT = Path(__file__).parents[3]
MAX_WIDTH = 120
HISTORY = {"docs/log.md"}  # A record: old entries stay as they were written.


def text_of(name):
    """Return the document without what its fenced blocks show: the output of a command is as wide as it is."""
    return "".join((ROOT / name).read_text(encoding="utf-8").split("```")[::2])


def documents():
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split() if name not in HISTORY]


def test_no_line_of_a_document_is_wider_than_120_characters():
    """Longer ones cannot be read in a terminal or compared in a diff; a wide table becomes narrow ones or a list."""
    assert "README.md" in documents()
    assert "docs/performance.md" in documents()
    wide = [f"{name}: {line}" for name in documents() for line in text_of(name).splitlines() if len(line) > MAX_WIDTH]
    assert wide == []


def shown_commands(name):
    """Return the words of each `crmuons ...` in the indented blocks of a document; a synopsis has brackets."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / name).read_text(encoding="utf-8"))
    lines = re.findall(r"^ {4,}(?:\$ )?crmuons ([^\n]+)", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if not re.search(r"\[-|\(--", line)]


@pytest.mark.parametrize("name", ["README.md", *sorted(name for name in documents() if name.startswith("docs/"))])
def test_every_command_that_a_document_shows_can_be_typed(name):
    commands = {cli.name_of(command): command for group in cli.GROUPS.values() for command in group}
    for command, *words in shown_commands(name):
        parser = argparse.ArgumentParser(exit_on_error=False)
        commands[command].add(parser)
        parser.parse_args(words)
        named = {word.partition("=")[0] for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)}
        assert named <= set(config.settings()), (command, *words)


def test_the_readme_shows_commands():
    assert len(shown_commands("README.md")) >= 8


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_every_module_that_a_document_names_exists(name):
    modules = {
        f"/{path.relative_to(ROOT)}"
        for folder in ("crmuons", "tune", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / name).read_text(encoding="utf-8"))
    assert [path for path in named if not any(module.endswith(f"/{path}") for module in modules)] == []


def test_every_name_that_the_architecture_page_gives_is_in_the_code():
    named = set(re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", text_of("docs/architecture.md")))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    code = [name for name in tracked if name.endswith((".py", ".toml", ".ini", ".sh", "Makefile"))]
    words = {word for name in code for word in re.findall(r"\w+", (ROOT / name).read_text(encoding="utf-8"))}
    words |= {part for name in tracked for part in re.split(r"[/.]", name)}
    missing = {name for name in named if not set(name.split(".")) <= words}
    assert missing == set()


OBSCURE = re.compile(r"\b(?:of\s+which|told|so\s+many|what\s+there\s+is|that\s+of)\b", re.IGNORECASE)
LINE_BREAK = re.compile(r"\"?\n\s*(?:#\s*|f?\")?")  # Inside of a paragraph, a comment, or a message of several strings.


def obscure(text):
    """Return the phrases of a text that make a reader look back or guess, each with the words around it."""
    text = LINE_BREAK.sub(" ", text)
    return [text[max(found.start() - 30, 0) : found.end() + 30] for found in OBSCURE.finditer(text)]


def test_code_and_documents_say_the_noun_again():
    """Readers whose first language is not English stumble over "that of", or "told" for "distinguished"."""
    assert obscure('msg = "the error is that "\n    f"of {name}"')
    assert obscure("# Showers, of\n    # which none has muons.")
    folders = ("crmuons", "tune", "jobs", "cluster", "docs")
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split() if Path(name).suffix in {".py", ".md", ".toml", ".sh"}]
    assert len(names) > 200
    found = {name: obscure((ROOT / name).read_text(encoding="utf-8")) for name in names if name not in HISTORY}
    assert {name: phrases for name, phrases in found.items() if phrases} == {}

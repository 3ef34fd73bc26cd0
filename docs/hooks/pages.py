"""The pages that are made from the code when the site is built: settings, command line, and the executed notebook."""

import argparse
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from crmuons import commands, config

DOCS = Path(__file__).parents[1]
HELP_WIDTH = 98


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the generated pages; MkDocs calls this after it has listed docs/."""
    pages = {"settings.md": settings_page(), "command-line.md": command_line_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name, content in run_notebook(DOCS / "notebook.py").items():
        files.append(File.generated(config, name, content=content))
    return files


def settings_page() -> str:
    """Return a table of all settings, one section of `crmuons settings` after the other."""
    lines = [
        "# Settings",
        "",
        "A run takes a TOML preset and then words of the form `section.key=value`; later values win. The same path works",
        "in a preset, on the command line and in the space of a [sweep](sweeps.md). `crmuons settings` prints this list.",
    ]
    sections: dict[str, list[str]] = {}
    for path, (default, meaning) in config.settings().items():
        row = f"| `{path}` | `{default}` | {_cell(meaning)} |"
        sections.setdefault(path.rpartition(".")[0], []).append(row)
    for section, rows in sections.items():
        lines += ["", f"## {section}", "", "| setting | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def command_line_page() -> str:
    """Return the help of every subcommand."""
    lines = ["# Command line", "", "Every command prints its own help with `--help`.", ""]
    for _, name, _ in pkgutil.iter_modules(commands.__path__):
        command = importlib.import_module(f"{commands.__name__}.{name}")
        parser = argparse.ArgumentParser(prog=f"crmuons {name}", description=command.__doc__)
        command.add(parser)
        lines += [f"## crmuons {name}", ""]
        for part in _with_subparsers(parser):
            part.formatter_class = _wide(part.formatter_class)
            lines += ["```text", part.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def run_notebook(path: Path) -> dict[str, str | bytes]:
    """Execute the notebook in a process of its own; return its page and its figures by their names in docs/."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, str(Path(__file__).with_name("notebook.py")), str(path), directory]
        subprocess.run(command, check=True)
        return {
            file.name: file.read_text() if file.suffix == ".md" else file.read_bytes()
            for file in sorted(Path(directory).glob("notebook*"))
        }


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|").replace("[", r"\[")


def _with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _with_subparsers(below)


def _wide(formatter: Any) -> Any:
    """Return a formatter of a fixed width: the page must not depend on the terminal."""
    return lambda prog: formatter(prog, width=HELP_WIDTH)

"""List every setting of a run, with its default and its meaning."""

import argparse
from collections.abc import Iterator, Mapping

from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables, one for each section")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons import config

    for line in (markdown if arguments.markdown else plain)(config.settings()):
        print(printable(line))


def plain(settings: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield two lines for each setting (dotted path: default and meaning)."""
    for path, (default, meaning) in settings.items():
        yield f"{path} = {default}\n    {meaning}"


def markdown(settings: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a Markdown page with a table for each section (`data`, `data.staging`, ...)."""
    yield "# Settings"
    for section in dict.fromkeys(path.rpartition(".")[0] for path in settings):
        yield from ("", f"## {section}", "", "| setting | default | meaning |", "|---|---|---|")
        for path, (default, meaning) in settings.items():
            if path.rpartition(".")[0] == section:
                row = (f"`{path}`", f"`{default}`", " ".join(meaning.split()))
                yield "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"

"""The command `crmuons`: find the subcommand (crmuons.commands), parse its arguments, run it, and report its errors."""

import argparse
import io
import logging
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from crmuons import interrupts
from crmuons.commands import (
    benchmark,
    convert,
    ensemble,
    evaluate,
    export,
    generate,
    inspect,
    login,
    prepare,
    settings,
    simulate,
    sweep,
    sync,
    train,
    validate,
)
from crmuons.progress import keep_bars_whole
from crmuons.provenance import complete_environment
from crmuons.storage import redact
from crmuons.unforeseen import DEBUG, guarded

GROUPS: dict[str, tuple[ModuleType, ...]] = {
    "make data": (simulate, convert, inspect, prepare),
    "train and compare": (train, sweep, evaluate, validate, settings),
    "use a model": (generate, ensemble, export),
    "housekeeping": (sync, login, benchmark),
}
NAMES = {command.__name__.rpartition(".")[2] for group in GROUPS.values() for command in group}
EXAMPLES = """\
most people need three commands:
  crmuons simulate --events 1000000 --out data/sim
  crmuons train default data.train=data/sim train.steps=2000
  crmuons generate --model runs/NAME --primaries data/sim --out bundles"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error that the user can fix gives one sentence and exit code 1. Any other error gives one sentence with the path
    of a report and exit code 70 (`unforeseen`). Without `argv`, as the program itself, a signal ends it with one sentence
    and exit code 130.
    """
    if argv is None:
        interrupts.catch()
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if word in NAMES), "")
    try:
        return guarded(f"crmuons {command}".strip(), lambda: _run([word for word in words if word != DEBUG]), words)
    finally:
        if argv is None:
            interrupts.release()


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the words in one line, and takes -1e5 and -inf as numbers, which the option refuses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage, and exit."""
        message = re.sub(r"\S{200,}", lambda word: f"{word[0][:80]}...", message)  # argparse shows wrong choices whole.
        self.exit(2, redact.message(f"{self.prog}: error: {message}; `{self.prog} --help` explains the options\n"))


def _run(words: Sequence[str]) -> int | None:
    for word in words:
        redact.refuse_secrets(word)  # Before argparse, whose errors show the words.
    arguments = _parse(_parser(words), words)
    # A terminal that is not UTF-8 shows an escape in place of a sign: without this, printing it would be an error.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    keep_bars_whole()
    complete_environment()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(redact.MessageFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.raiseExceptions = False  # No traceback for a line that cannot be written, as to a closed terminal.
    for package in ("crmuons", "tune"):  # Other libraries stay at warnings: torch would report its caches at exit.
        logging.getLogger(package).setLevel(logging.INFO)
    code: int | None = arguments.run(arguments)
    return code


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="crmuons",
        usage="crmuons [-h] [--debug] COMMAND ...",
        description="Train and use a generator of atmospheric muon bundles. `crmuons COMMAND --help` explains more.",
        epilog=f"{_command_list()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Only for the help: `main` removes this option before the words are parsed, so it may stand anywhere.
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
    # argparse cannot group subcommands: it lists none of them, and the epilog lists all.
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="crmuons", help=argparse.SUPPRESS
    )
    for command in (command for group in GROUPS.values() for command in group):
        command_parser = commands.add_parser(name_of(command), description=command.__doc__)
        command_parser.set_defaults(run=command.run)
        if name_of(command) in words:  # `add` of some commands imports their defaults, which takes a second.
            command.add(command_parser)
    return parser


def name_of(command: ModuleType) -> str:
    """Return the name of a command: its module's name."""
    return command.__name__.rpartition(".")[2]


def _command_list() -> str:
    groups = (
        "\n".join([f"{title}:", *(f"  {name_of(command):<10} {command.__doc__}" for command in group)])
        for title, group in GROUPS.items()
    )
    return "\n\n".join(groups)


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse the words, and accept settings after the options too, where argparse alone would refuse them."""
    # argparse makes a list of `--option=--`.
    if option := next((word for word in words if re.fullmatch("--[a-z-]+=--", word)), None):
        parser.error(f"argument {option.removesuffix('=--')}: it has no value")
    arguments, left = parser.parse_known_args(words)
    # argparse does not consume a `--` that follows an option whose value is optional.
    if "--" in left and (before := words[max(words.index("--") - 1, 0)]) != "--" and before.startswith("--"):
        parser.error(f"argument {before}: '--' is no value of it; leave it out")
    if "words" in arguments:
        arguments.words += [word for word in left if not word.startswith("-")]
        left = [word for word in left if word.startswith("-")]
        if left:
            parser.error(f"unrecognized arguments: {' '.join(left)}; {_settings_meant(left)}")
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


def _settings_meant(options: Sequence[str]) -> str:
    """Return the words to write in place of options that are settings in other programs."""
    from crmuons.config import settings  # noqa: PLC0415  # Only here: the import takes 0.2 s.
    from crmuons.config.hints import nearest, why_left_out  # noqa: PLC0415

    names = [option.lstrip("-").partition("=")[0] for option in options]
    if reason := next(filter(None, map(why_left_out, names)), None):
        return f"crmuons leaves it out, because {reason}"
    words = (nearest(name, settings()) for name in names)
    named = " ".join(f"{word}=VALUE" for word in words if word is not None)
    return f"a setting is a word without dashes, such as {named or 'train.steps=1000; `crmuons settings` lists all'}"


if __name__ == "__main__":
    sys.exit(main())

"""The command `crmuons`: find the subcommand (crmuons.commands), parse its arguments, run it, and report its errors."""

import argparse
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

from crmuons.commands import (
    INTERRUPTED,
    benchmark,
    convert,
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

GROUPS: dict[str, tuple[ModuleType, ...]] = {
    "make data": (simulate, convert, inspect, prepare),
    "train and compare": (train, sweep, evaluate, validate, settings),
    "use a model": (generate, export),
    "housekeeping": (sync, login, benchmark),
}
EXAMPLES = """\
most people need three commands:
  crmuons simulate --events 1000000 --out data/sim
  crmuons train jobs/configs/default.toml data.train=data/sim train.steps=2000
  crmuons generate --model runs/NAME --primaries data/sim --out bundles"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. An error that the user can fix is one sentence, with exit code 1."""
    words = sys.argv[1:] if argv is None else argv
    arguments = _parse(_parser(words), words)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for package in ("crmuons", "tune"):  # Other libraries stay at warnings: torch would report its caches at exit.
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, OSError, ImportError) as error:
        print(f"crmuons {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"crmuons {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crmuons",
        usage="crmuons [-h] COMMAND ...",
        description="Train and use a generator of atmospheric muon bundles. `crmuons COMMAND --help` explains more.",
        epilog=f"{_command_list()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    arguments, left = parser.parse_known_args(words)
    if "words" in arguments:
        arguments.words += [word for word in left if not word.startswith("-")]
        left = [word for word in left if word.startswith("-")]
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

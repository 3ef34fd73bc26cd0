"""The command `crmuons`, see `commands`."""

import argparse
import logging
import sys
from collections.abc import Sequence

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
)

COMMANDS = (
    simulate,
    convert,
    inspect,
    prepare,
    train,
    sweep,
    evaluate,
    settings,
    generate,
    export,
    sync,
    login,
    benchmark,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what a user can mend is said in one sentence, with exit code 1."""
    parser = argparse.ArgumentParser(
        prog="crmuons", description="Train and use a generator of atmospheric muon bundles."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = sys.argv[1:] if argv is None else argv
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        of_command = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        of_command.set_defaults(run=command.run)
        if name in words:  # The others' arguments are not asked for: their defaults take a second to import.
            command.add(of_command)
    arguments = _parse(parser, words)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for ours in ("crmuons", "tune"):  # Of libraries, warnings alone: torch tells of its caches when it ends, say.
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, OSError, ImportError) as error:
        print(f"crmuons {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"crmuons {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Settings may also stand after the options, where argparse by itself takes them for something unknown."""
    arguments, left = parser.parse_known_args(words)
    if "words" in arguments:
        arguments.words += [word for word in left if not word.startswith("-")]
        left = [word for word in left if word.startswith("-")]
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

"""The command `crmuons`: each subcommand parses, calls one library function, and says where the results are."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what a user can mend is said in one sentence, with exit code 1."""
    parser = argparse.ArgumentParser(
        prog="crmuons", description="Train and use a generator of atmospheric muon bundles."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, OSError, ImportError) as error:
        print(f"crmuons {arguments.command}: {error}", file=sys.stderr)
        return 1


COMMANDS: tuple[Callable[..., None], ...] = ()

if __name__ == "__main__":
    sys.exit(main())

"""The command `crmuons`, and `python -m crmuons`: signals are caught before the rest is imported."""

import sys

from crmuons.interrupts import catch


def main() -> int:
    """Run the command of this process's words, and return its exit code."""
    catch()
    from crmuons.cli import main as run  # noqa: PLC0415  # It takes up to a second.

    return run()


if __name__ == "__main__":
    sys.exit(main())

"""Sweep as a Ray job: `ray job submit --working-dir . -- python -m jobs.sweep PRESET section.key=value ... --samples 50`."""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))

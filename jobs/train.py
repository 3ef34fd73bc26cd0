"""Train as a Ray job: `ray job submit --working-dir . -- python -m jobs.train PRESET section.key=value ...`."""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

"""`crmuons generate` as a Ray job: the same options, with tasks on the cluster that write the shards.

ray job submit --working-dir . -- python -m jobs.generate --model DIR ... --out DIR
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))

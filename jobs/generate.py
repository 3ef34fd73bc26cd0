"""Generate events on a cluster: `ray job submit --working-dir . -- python -m jobs.generate --model DIR ... --out DIR`.

The arguments are those of `crmuons generate`.
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))

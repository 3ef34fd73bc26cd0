"""`crmuons validate` as a Ray job: the same options, in the job's own process.

ray job submit --working-dir . -- python -m jobs.validate DATA_OR_MODEL --out DIR
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["validate", *sys.argv[1:]]))

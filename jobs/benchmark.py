"""`crmuons benchmark` as a Ray job: the same options, measured where the cluster's head runs jobs.

ray job submit --working-dir . -- python -m jobs.benchmark SUITE --out DIR
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))

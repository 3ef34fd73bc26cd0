"""`crmuons evaluate` as a Ray job: the same options, with tasks on the cluster at RAY_ADDRESS, which Ray sets for jobs.

ray job submit --working-dir . -- python -m jobs.evaluate --truth DATA --model DIR --out DIR
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

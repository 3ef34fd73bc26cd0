"""`crmuons benchmark` as a Ray job: the same options, measured on the node that runs the job.

ray job submit --working-dir . -- python -m jobs.benchmark SUITE --out DIR
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))

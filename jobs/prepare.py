"""`crmuons prepare` as a Ray job: the same options, run on the cluster, close to its storage.

ray job submit --working-dir . -- python -m jobs.prepare DATA --out DIR
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))

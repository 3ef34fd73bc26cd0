"""`crmuons train` as a Ray job: the same settings, with workers on the cluster.

ray job submit --working-dir . -- python -m jobs.train PRESET section.key=value ...
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

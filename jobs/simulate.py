"""`crmuons simulate` as a Ray job: the same options, with tasks on the cluster that write the files.

ray job submit --working-dir . -- python -m jobs.simulate --events N --out DIR
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))

"""`crmuons sweep` as a Ray job: the same options, with trials on the cluster.

ray job submit --working-dir . -- python -m jobs.sweep PRESET section.key=value ... --samples 50
"""

import sys

from crmuons.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))

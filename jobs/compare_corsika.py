"""Print the tables of docs/simulator.md, which compare the simulator with CORSIKA 7 files.

python -m jobs.compare_corsika FILES
"""

import argparse
import sys
from pathlib import Path

from crmuons.simulation.bundles import bundle_tables
from crmuons.simulation.comparison import compare_with_simulator, comparison_table
from crmuons.simulation.corsika import read_showers
from crmuons.storage import files
from crmuons.storage.redact import printable
from crmuons.unforeseen import guarded


def main() -> int:
    """Read the files, simulate their primaries, and print the tables; raise ValueError if a file cannot be read."""
    parser = argparse.ArgumentParser(description="Compare the simulator with CORSIKA 7 particle files.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--depth", type=float, default=3330.0, metavar="M", help="slant depth in ice of small bundles")
    parser.add_argument("files", nargs="+", help="files or globs")
    arguments = parser.parse_args()
    listed = files.list_files(arguments.files, suffixes=("",))
    showers = [shower for file in listed for shower in read_showers(Path(file.url))]
    print(printable("\n".join(comparison_table(compare_with_simulator(showers)))), end="\n\n")
    print(printable("\n".join(bundle_tables(showers, arguments.depth))))
    return 0


if __name__ == "__main__":
    sys.exit(guarded("compare_corsika", main, sys.argv[1:]))

"""Print the table of docs/simulator.md: the simulator beside CORSIKA 7 files.

python -m jobs.compare_corsika FILES
"""

import argparse
from pathlib import Path

from crmuons import files
from crmuons.simulation.comparison import compare, table
from crmuons.simulation.corsika import read_showers


def main() -> None:
    """Read the files, simulate their primaries, print the cells."""
    parser = argparse.ArgumentParser(description="Compare the simulator with CORSIKA 7 particle files.")
    parser.add_argument("files", nargs="+", help="files or globs")
    arguments = parser.parse_args()
    found = files.list_files(arguments.files, suffixes=("",))
    showers = [one for file in found for one in read_showers(Path(file.url))]
    print("\n".join(table(compare(showers))))


if __name__ == "__main__":
    main()

"""Print the table of docs/simulator.md, which compares the simulator with CORSIKA 7 files.

python -m jobs.compare_corsika FILES
"""

import argparse
import sys
from pathlib import Path

from crmuons.simulation.comparison import compare, comparison_table
from crmuons.simulation.corsika import read_showers
from crmuons.storage import files


def main() -> int:
    """Read the files, simulate their primaries, and print the table; return 1 if a file cannot be read."""
    parser = argparse.ArgumentParser(description="Compare the simulator with CORSIKA 7 particle files.")
    parser.add_argument("files", nargs="+", help="files or globs")
    arguments = parser.parse_args()
    try:
        listed = files.list_files(arguments.files, suffixes=("",))
        showers = [shower for file in listed for shower in read_showers(Path(file.url))]
    except (ValueError, OSError) as error:
        print(f"compare_corsika: {error}", file=sys.stderr)
        return 1
    print("\n".join(comparison_table(compare(showers))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Make shuffled, checked shards of a data set, which training reads much faster."""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from crmuons.commands import INTERRUPTED, HelpWithDefaults


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    from crmuons.data.prepare.shuffle import PrepareSettings

    default = PrepareSettings()
    parser.description = (
        "Check and shuffle a whole data set once, and write shards that training maps into memory "
        "(docs/data-contract.md says when it pays). The same command goes on where it was interrupted."
    )
    parser.formatter_class = HelpWithDefaults
    add = parser.add_argument
    add("data", nargs="+", help="files, directories, globs or URLs of event Parquet")
    add("--out", type=_folder, required=True, help="new directory, which all nodes share where there are several")
    add("--validation-share", type=float, default=default.validation_share, help="of the showers")
    add("--test-share", type=float, default=default.test_share, help="of the showers")
    add(
        "--vertical",
        action="store_true",
        help="the files' depth_m is the vertical depth; the shards hold the slant one",
    )
    add("--seed", type=int, default=default.seed, help="of the shuffle")
    add("--max-quarantined-share", type=float, default=0.01, help="end where more of all rows cannot be used")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crmuons.data.prepare import build
    from crmuons.data.prepare.shuffle import QUARANTINE, PrepareSettings
    from crmuons.models.features import fit_to_file

    settings = PrepareSettings(arguments.validation_share, arguments.test_share, arguments.vertical, arguments.seed)
    out = arguments.out.absolute()
    begun = build.claim_dataset(out, arguments.data, settings)
    each: build.TaskRunner = build.run_locally
    connection: AbstractContextManager[None] = nullcontext()
    if begun.is_large:
        from crmuons.ray_backend import tasks
        from crmuons.ray_backend.cluster import cluster

        each, connection = tasks.map_unordered, cluster()
    try:
        with connection:
            manifest = build.prepare_dataset(begun, fit_to_file, each, arguments.max_quarantined_share)
    except KeyboardInterrupt:
        print("crmuons prepare: interrupted; the same command goes on from what is done", file=sys.stderr)
        return INTERRUPTED
    print(f"{manifest.describe()} in {arguments.out}")
    if manifest.quarantined:
        print(f"{manifest.quarantined} rows that cannot be used: {arguments.out / QUARANTINE}")
    return 0


def _folder(text: str) -> Path:
    if "://" in text:
        msg = f"'{text}' is a URL; shards are written to a directory, from which they can be copied"
        raise argparse.ArgumentTypeError(msg)
    return Path(text)

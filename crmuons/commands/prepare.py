"""Check and shuffle a data set into shards that training reads much faster."""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext

from crmuons.commands import INTERRUPTED, HelpWithDefaults
from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from crmuons.config.options import LocalPath, Place, Seed, Share, Word, option
    from crmuons.data.prepare.shuffle import PrepareSettings

    default = PrepareSettings()
    parser.description = (
        "Check and shuffle a whole data set once, and write shards that training maps into memory "
        "(docs/data-contract.md explains when this is worth it). After an interruption, run the same command again to "
        "continue."
    )
    parser.formatter_class = HelpWithDefaults
    add = parser.add_argument
    add("data", type=option(Place), nargs="+", help="files, directories, globs or URLs of event Parquet")
    add("--out", type=option(LocalPath), required=True, help="new directory; on a cluster, all nodes must share it")
    add(
        "--validation-share",
        type=option(Share),
        default=default.validation_share,
        help="share of the showers for validation",
    )
    add("--test-share", type=option(Share), default=default.test_share, help="share of the showers for testing")
    add(
        "--vertical",
        action="store_true",
        help="depth_m of the files is the vertical depth; the shards get the slant depth",
    )
    add("--seed", type=option(Seed), default=default.seed, help="seed of the shuffle")
    add(
        "--features",
        type=option(Word),
        nargs="+",
        default=(),
        metavar="NAME",
        help="numbers of a muon to keep in addition to energy_gev, x_m, y_m, as in data.features",
    )
    add(
        "--max-quarantined-share",
        type=option(Share),
        default=0.01,
        help="stop if more than this share of all rows cannot be used",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from functools import partial

    from crmuons.data import features
    from crmuons.data.prepare import build
    from crmuons.data.prepare.shuffle import QUARANTINE, PrepareSettings
    from crmuons.models.features import fit_to_file
    from crmuons.storage.ownership import hold

    settings = PrepareSettings(
        arguments.validation_share, arguments.test_share, arguments.vertical, arguments.seed, tuple(arguments.features)
    )
    fit = partial(fit_to_file, extra=features.parse(settings.features, "--features"))
    out = arguments.out.absolute()
    run_tasks: build.TaskRunner = build.run_locally
    connection: AbstractContextManager[None] = nullcontext()
    try:
        with hold(out):
            preparation = build.claim_dataset(out, arguments.data, settings)
            if preparation.is_large:
                from crmuons.ray_backend import tasks
                from crmuons.ray_backend.cluster import cluster

                run_tasks, connection = tasks.map_unordered, cluster()
            with connection:
                manifest = build.prepare_dataset(preparation, fit, run_tasks, arguments.max_quarantined_share)
    except KeyboardInterrupt:
        print("crmuons prepare: interrupted; run the same command to continue with what is missing", file=sys.stderr)
        return INTERRUPTED
    print(printable(f"{manifest.describe()} in {arguments.out}"))
    if manifest.quarantined:
        print(printable(f"{manifest.quarantined} rows cannot be used; they are in {arguments.out / QUARANTINE}"))
    return 0

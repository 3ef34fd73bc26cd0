"""Join trained models to an ensemble, one model with error bars."""

import argparse

from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Join two or more trained models, such as the runs of a sweep, to one model that every command takes: each event is "
        "drawn from one of them, and `crmuons evaluate` shows how far they are apart (docs/generation.md). `crmuons train "
        "--ensemble K` trains one from the start."
    )
    from crmuons.config.options import Output, Place, option

    parser.add_argument(
        "models",
        type=option(Place),
        nargs="+",
        metavar="MODEL",
        help="runs, checkpoints or model directories (paths or URLs), or `models:/NAME@ALIAS` in MLflow",
    )
    parser.add_argument("--out", type=option(Output), required=True, help="new directory, or its URL")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.generation.ensemble import write_ensemble
    from crmuons.tracking.logged_models import local_place

    write_ensemble([local_place(model) for model in arguments.models], arguments.out)
    print(printable(f"ensemble of {len(arguments.models)} models in {arguments.out}"))

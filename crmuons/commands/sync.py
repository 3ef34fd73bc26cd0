"""Send to MLflow what a run could not send itself."""

import argparse

from crmuons.storage.redact import printable

REMEDY = "it sends the entries itself"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Send the rest of a run's journal to an MLflow server. Entries that the server already has are not sent again."
    )
    from crmuons.config.options import LocalPath, Server, option

    parser.add_argument("run_dir", type=option(LocalPath), metavar="RUN_DIR", help="directory of the run")
    parser.add_argument(
        "--to",
        type=option(Server),
        metavar="URI",
        help="the server (default: MLFLOW_TRACKING_URI; without it, the run's own server, which gets no credentials)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.storage.ownership import hold
    from crmuons.tracking.journal import check_journal

    check_journal(arguments.run_dir)  # Before the import of MLflow, which takes seconds.
    from crmuons.tracking.sender import sync

    with hold(arguments.run_dir, remedy=REMEDY):
        num_sent, run_id = sync(arguments.run_dir, arguments.to)
    print(printable(f"{num_sent} entries of {arguments.run_dir} sent to MLflow run {run_id}"))

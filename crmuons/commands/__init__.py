"""The subcommands of `crmuons`, one module each.

`add` gives a parser the command's arguments; `run` calls the library and prints where the results are. The first line
of the module's docstring is the command's help. Slow imports live in `add` and `run`, so only the chosen command pays
for them.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crmuons.config import Config
    from crmuons.training.driver import Launcher

INTERRUPTED = 130  # The exit code that shells use after Ctrl-C: a script then does not run the next command.


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each option's default to its help, unless there is none or the help already names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, ()) or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def launcher_of(settings: "Config") -> "Launcher":
    """Return the launcher for a run's workers. With scaling.num_workers=0 Ray is not imported."""
    if settings.scaling.num_workers == 0:
        from crmuons.training.driver import LocalLauncher

        return LocalLauncher()
    from crmuons.ray_backend.train import RayLauncher

    return RayLauncher()


def track_results(run: Path, values: Mapping[str, float], step: int, out: Path) -> None:
    """Add metrics and a directory of artifacts to a tracked run in MLflow. The command succeeds if the server is down."""
    from crmuons.tracking.journal import Journal
    from crmuons.tracking.results import add_results

    if not Journal.exists(run):
        return
    try:
        run_id = add_results(run, values, step, out)
    except (ConnectionError, BlockingIOError) as error:
        print(f"kept for `crmuons sync {run}`: {error}", file=sys.stderr)
    else:
        print(f"MLflow run: {run_id}")

"""The subcommands of `crmuons`, one module each.

`add` gives a parser the command's arguments; `run` calls the library and prints where the results are. The first line
of the module's docstring is the command's help. Slow imports live in `add` and `run`, so only the chosen command pays
for them.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crmuons.interrupts import INTERRUPTED
from crmuons.storage.redact import message, printable

__all__ = ["INTERRUPTED", "HelpWithDefaults", "add_settings", "launcher_of", "settings_of"]

if TYPE_CHECKING:
    from crmuons.config import Config
    from crmuons.training.driver import Launcher

DEFAULT_PRESET = "default"


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each option's default to its help, unless there is none or the help already names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, ()) or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the words that `settings_of` reads."""
    parser.epilog = "`crmuons settings` lists every setting. `train.max_seconds=none` unsets one."
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[PRESET] section.key=value",
        help="a TOML file or the name of a preset (default: default), and settings that override the preset's",
    )


def settings_of(words: Sequence[str]) -> "Config":
    """Return the settings of a command line: a preset, if the first word is one, and words that override it."""
    from crmuons import config

    names_preset = bool(words) and ("=" not in words[0] or Path(words[0]).is_file())
    return config.load(words[0] if names_preset else DEFAULT_PRESET, words[int(names_preset) :])


def launcher_of(settings: "Config") -> "Launcher":
    """Return the launcher for a run's workers. With scaling.num_workers=0 Ray is not imported."""
    if settings.scaling.num_workers == 0:
        from crmuons.training.driver import LocalLauncher

        return LocalLauncher()
    from crmuons.ray_backend.train import RayLauncher

    return RayLauncher()


def check_tracking(runs: Sequence[str]) -> None:
    """Check the server that `track_results` would send the results of these runs to, before they are made.

    Raises:
        ValueError: if nothing can be tracked there.
    """
    from crmuons.tracking.health import usable_uri
    from crmuons.tracking.journal import Journal

    if os.environ.get("MLFLOW_TRACKING_URI") and any(Journal.exists(Path(run)) for run in runs):
        usable_uri(Path())


def track_results(run: Path, values: Mapping[str, float], step: int, out: Path) -> None:
    """Add metrics and a directory of artifacts to a tracked run in MLflow.

    The command succeeds even if the server is down, the run still trains, or the run is another user's.
    """
    from crmuons.storage.owner import HeldError
    from crmuons.storage.ownership import hold
    from crmuons.tracking.journal import Journal
    from crmuons.tracking.results import add_results

    if not Journal.exists(run):
        return
    try:
        with hold(run, remedy="give the same command when it has ended"):
            run_id = add_results(run, values, step, out)
    except (HeldError, PermissionError) as error:
        print(message(f"MLflow does not get these results: {error}"), file=sys.stderr)
    except (ConnectionError, BlockingIOError) as error:
        print(message(f"kept for `crmuons sync {run}`: {error}"), file=sys.stderr)
    else:
        print(printable(f"MLflow run: {run_id}"))

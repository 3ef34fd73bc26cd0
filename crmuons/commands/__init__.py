"""The subcommands of `crmuons`, a module each: `add` gives a parser its arguments, `run` calls the library and says where results are.

What takes long to import is imported by `add` and `run`, of which the others' are never called: `crmuons train` does not wait
for what `crmuons simulate` needs.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crmuons.config import Config
    from crmuons.training.driver import Launcher

INTERRUPTED = 130  # What a shell makes of a command that Ctrl-C ended: what should follow it does not.


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each option's default to its help, unless there is none or the help tells it in words."""

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

"""Every setting of a run: `sections.py` declares them, `reading.py` reads presets and words."""

from crmuons.config.reading import changed, from_dict, from_stored, load, settings, with_new_names
from crmuons.config.sections import (
    Config,
    Data,
    Model,
    Optimizer,
    Penalty,
    Run,
    Scaling,
    Section,
    Staging,
    Tracking,
    Train,
)

__all__ = [
    "Config",
    "Data",
    "Model",
    "Optimizer",
    "Penalty",
    "Run",
    "Scaling",
    "Section",
    "Staging",
    "Tracking",
    "Train",
    "changed",
    "from_dict",
    "from_stored",
    "load",
    "settings",
    "with_new_names",
]

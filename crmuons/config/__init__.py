"""Every setting of a run: `sections.py` and `training.py` declare them, `reading.py` reads presets and words,
`hints.py` knows other names of settings; `presets/` has the presets of crmuons."""

from crmuons.config.adaptation import Adapt
from crmuons.config.base import Section
from crmuons.config.reading import (
    changed,
    find_preset,
    from_dict,
    from_stored,
    load,
    read_toml,
    settings,
    with_new_names,
)
from crmuons.config.sections import (
    LATER,
    Config,
    Data,
    Model,
    Run,
    Scaling,
    Staging,
    Tracking,
)
from crmuons.config.training import Optimizer, Penalty, Train

__all__ = [
    "LATER",
    "Adapt",
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
    "find_preset",
    "from_dict",
    "from_stored",
    "load",
    "read_toml",
    "settings",
    "with_new_names",
]

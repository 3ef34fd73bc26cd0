"""How long to wait for a federation."""

import os
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Waits:
    """How long to wait for what, in seconds; each is read from CRMUONS_PELICAN_<NAME>."""

    connect_s: float = 15.0
    """For a connection."""
    read_s: float = 60.0
    """For the next byte of an answer; there is no limit on the whole answer."""
    patience_s: float = 300.0
    """For progress, over all servers and attempts."""
    digest_s: float = 40.0
    """For a file's checksum, which an origin may have to compute; XRootD puts off the answer by 30 s when it is busy."""
    start_s: float = 30.0
    """For the federation's discovery, which a mistyped name never answers."""
    token_s: float = 30.0
    """For the renewal of an expired token."""

    @classmethod
    def from_environment(cls) -> "Waits":
        """The defaults, and what the environment says otherwise.

        Raises:
            ValueError: naming a variable that is not a positive number.
        """
        variables = {each.name: f"CRMUONS_PELICAN_{each.name.upper()}" for each in fields(cls)}
        return cls(**{name: _seconds(variable) for name, variable in variables.items() if variable in os.environ})


def _seconds(variable: str) -> float:
    value = os.environ[variable]
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        msg = f"{variable} is '{value}'; it takes a positive number of seconds"
        raise ValueError(msg)
    return seconds

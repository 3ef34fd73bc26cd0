"""Time limits for requests to a federation."""

import os
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Waits:
    """Time limits in seconds. Each is read from the environment variable CRMUONS_PELICAN_<NAME>."""

    connect_s: float = 15.0
    """For a connection."""
    read_s: float = 60.0
    """For the next byte of an answer. The whole answer has no limit."""
    patience_s: float = 300.0
    """For progress, over all servers and attempts."""
    digest_s: float = 40.0
    """For a file's checksum, which an origin may have to compute. A busy XRootD delays the answer by 30 s."""
    start_s: float = 30.0
    """For the federation's discovery. A mistyped host never answers."""
    token_s: float = 30.0
    """For the renewal of an expired token."""

    @classmethod
    def from_environment(cls) -> "Waits":
        """Return the defaults, replaced by the environment's values.

        Raises:
            ValueError: if a variable is not a positive number.
        """
        variables = {item.name: f"CRMUONS_PELICAN_{item.name.upper()}" for item in fields(cls)}
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

"""Time limits for requests to servers."""

import os
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from crmuons.config.options import shown, to_number

MAX_S = 1e7  # asyncio and sockets refuse limits of more than some years.


@dataclass(frozen=True)
class Waits:
    """Time limits in seconds. Each is read from the environment variable CRMUONS_HTTP_<NAME>."""

    prefix: ClassVar[str] = "CRMUONS_HTTP_"

    connect_s: float = 5.0
    """For a connection: a lost packet is sent again after 1 and 3 s."""
    read_s: float = 60.0
    """For the next kilobyte of an answer. The whole answer has no limit."""
    patience_s: float = 300.0
    """For progress, over all servers and attempts."""
    start_s: float = 5.0
    """For the first answer of a host. A mistyped host never answers, and its name may not be found for minutes."""

    @property
    def headers_s(self) -> float:
        """For a connection and all headers of an answer."""
        return self.connect_s + self.read_s

    @classmethod
    def from_environment(cls) -> Self:
        """Return the defaults, replaced by the environment's values.

        Raises:
            ValueError: if a variable is not a positive number.
        """
        variables = {item.name: f"{cls.prefix}{item.name.upper()}" for item in fields(cls)}
        return cls(**{name: _seconds(variable) for name, variable in variables.items() if variable in os.environ})


def _seconds(variable: str) -> float:
    value = os.environ[variable]
    try:
        seconds = to_number(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_S:
        msg = f"{variable} is {shown(value)}; it takes a positive number of seconds, at most {MAX_S:g}"
        raise ValueError(msg)
    return seconds

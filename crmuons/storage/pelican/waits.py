"""Time limits for requests to a federation."""

from dataclasses import dataclass
from typing import ClassVar

from crmuons.storage.http import waits


@dataclass(frozen=True)
class Waits(waits.Waits):
    """Time limits in seconds. Each is read from the environment variable CRMUONS_PELICAN_<NAME>."""

    prefix: ClassVar[str] = "CRMUONS_PELICAN_"

    digest_s: float = 40.0
    """For a file's checksum, which an origin may have to compute. A busy XRootD delays the answer by 30 s."""
    token_s: float = 30.0
    """For the renewal of an expired token."""

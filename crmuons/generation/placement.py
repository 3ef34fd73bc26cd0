"""Primaries of a spectrum around a detector: each bundle is drawn at the depth at which its axis enters the surface."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from crmuons.data import geometry, schema
from crmuons.generation.formats.surface import Surface, place
from crmuons.generation.primaries import Primaries
from crmuons.generation.spectrum import Spectrum


@dataclass(frozen=True)
class PlacedSpectrum:
    """A source of primaries whose axes cross a surface.

    Attributes:
        spectrum: its depth is the depth of the detector's centre; its cylinder is the cylinder around the surface.
        surface: the surface around the detector.
    """

    spectrum: Spectrum
    surface: Surface

    @classmethod
    def around(cls, surface: Surface, spectrum: Spectrum) -> "PlacedSpectrum":
        """Return a spectrum around a surface.

        Raises:
            ValueError: if the depth is a range, or the surface reaches too close to the ground.
        """
        low, high = spectrum.depth_m
        if low != high:
            msg = (
                f"--surface: depth_m={low:g}:{high:g} is a range; give the vertical depth of the detector's centre, for "
                "example depth_m=1950:1950"
            )
            raise ValueError(msg)
        cylinder = surface.cylinder
        top = low - cylinder.length_m / 2
        if top < schema.MIN_DEPTH_M:
            msg = (
                f"--surface: it begins {top:g} m below the ground, with its centre at {low:g} m; expected at least "
                f"{schema.MIN_DEPTH_M:g} m: take a smaller surface or a deeper centre"
            )
            raise ValueError(msg)
        return cls(replace(spectrum, cylinder_m=(cylinder.length_m, cylinder.radius_m)), surface)

    def about(self) -> dict[str, object]:
        """Return spectrum and surface."""
        return self.spectrum.about() | {"surface": asdict(self.surface)}

    def __iter__(self) -> Iterator[Primaries]:
        """Draw the primaries, with the slant depth at which each axis enters the surface."""
        for primaries in self.spectrum:
            zenith = primaries.values[:, 1].astype(np.float64)
            _, entry = place(primaries.ids, zenith, self.surface, self.spectrum.seed)
            values = primaries.values.copy()
            values[:, 3] = geometry.slant_depth_m(self.spectrum.depth_m[0] - entry[:, 2], np.cos(zenith))
            yield Primaries(primaries.ids, values)

"""Warn about events that obey the contract but seem to have other units. A model would learn them without an error."""

import numpy as np

from crmuons.data.events import EventArrays

MOST_DEPTH_M = 1.3e7  # Through the whole Earth.
MOST_MASS_GEV = 300.0  # Uranium has 222.
MOST_RADIUS_M = 1e6  # From the axis of a shower: 100 times farther than any muon that arrives below ground.
MOST_GEV = 1e12  # The most energetic cosmic ray that was seen had 3.2e11 GeV (Bird et al. 1995).


def doubts(events: EventArrays) -> list[str]:
    """Return what is implausible about events, each as a sentence with the likely reason; empty if all is well."""
    if not len(events.counts):
        return []
    energy, _, mass, depth = events.primaries.astype(np.float64).T
    found = []
    if (num := int((energy > MOST_GEV).sum())) > 0:
        found.append(
            f"{num:,} of {len(energy):,} primaries have more than {MOST_GEV:.0e} GeV, up to {energy.max():.2g}, which no "
            "cosmic ray has: are the energies in eV, MeV or TeV? energy_gev is in GeV"
        )
    if (num := int((depth > MOST_DEPTH_M).sum())) > 0:
        found.append(
            f"{num:,} of {len(depth):,} primaries have a depth_m of more than {MOST_DEPTH_M:.1e} m, up to {depth.max():.2g}, "
            "which is more than the whole Earth: are depths in cm or mm?"
        )
    if (num := int((mass > MOST_MASS_GEV).sum())) > 0:
        found.append(
            f"{num:,} of {len(mass):,} primaries have a mass of more than {MOST_MASS_GEV:.0f} GeV, up to {mass.max():.2g}, which "
            "no nucleus has: is it in MeV? mass_gev is in GeV (proton 0.938, iron 52.1)"
        )
    masses = np.unique(mass)
    # A proton has 0.938 GeV and iron 52.1: no nucleus has a whole number of GeV.
    if (masses == np.round(masses)).all() and masses[-1] <= MOST_MASS_GEV:
        named = ", ".join(f"{value:g}" for value in masses[:5])
        found.append(
            f"all masses are whole numbers ({named}): are they mass numbers? mass_gev is in GeV (proton 0.938)"
        )
    far = np.abs(events.muons[:, 1:3]).max(axis=1) > MOST_RADIUS_M
    if (num := int(far.sum())) > 0:
        found.append(
            f"{num:,} of {len(far):,} muons are more than {MOST_RADIUS_M:.0e} m from the axis: are x_m and y_m in cm or mm?"
        )
    above = events.muons[:, 0] > np.repeat(energy, events.counts)
    if (num := int(above.sum())) > 0:
        found.append(
            f"{num:,} of {len(above):,} muons have more energy than their primary: are both in GeV, and do the muons belong "
            "to these primaries?"
        )
    return found

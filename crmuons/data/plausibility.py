"""Doubt events that obey the contract but look like other units: nothing else would notice, and a model would learn them."""

import numpy as np

from crmuons.data.events import EventArrays

MOST_GEV = 1e12  # The most energetic cosmic ray that was seen had 3.2e11 GeV (Bird et al. 1995).


def doubts(events: EventArrays) -> list[str]:
    """Return what is implausible about events, each as a sentence with the likely reason; empty if all is well."""
    if not len(events.counts):
        return []
    energy, _, mass, _ = events.primaries.astype(np.float64).T
    found = []
    if (num := int((energy > MOST_GEV).sum())) > 0:
        found.append(
            f"{num:,} of {len(energy):,} primaries have more than {MOST_GEV:.0e} GeV, up to {energy.max():.2g}, which no "
            "cosmic ray has: are the energies in eV, MeV or TeV? energy_gev is in GeV"
        )
    masses = np.unique(mass)
    # A proton has 0.938 GeV and iron 52.1: no nucleus has a whole number of GeV.
    if (masses == np.round(masses)).all():
        named = ", ".join(f"{value:g}" for value in masses[:5])
        found.append(
            f"all masses are whole numbers ({named}): are they mass numbers? mass_gev is in GeV (proton 0.938)"
        )
    above = events.muons[:, 0] > np.repeat(energy, events.counts)
    if (num := int(above.sum())) > 0:
        found.append(
            f"{num:,} of {len(above):,} muons have more energy than their primary: are both in GeV, and do the muons belong "
            "to these primaries?"
        )
    return found

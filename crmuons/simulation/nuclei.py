"""Names of nuclei, which options accept as primaries, with their charge, nucleons and mass."""

import difflib

import numpy as np

from crmuons.config.options import to_number
from crmuons.simulation import shower

# Z and A of all nuclei of simweights' fluxes. Its Gaisser H3a and H4a and its GST have p, He, N, Al and Fe; its fluxes for
# IceTop have p, He, O and Fe; Hoerandel ends with Fe, and GSF has all of these. Phosphorus is P31, because P is the proton.
NUCLEI = {
    "p": (1, 1), "He": (2, 4), "Li": (3, 7), "Be": (4, 9), "B": (5, 11), "C": (6, 12), "N": (7, 14), "O": (8, 16), "F": (9, 19),
    "Ne": (10, 20), "Na": (11, 23), "Mg": (12, 24), "Al": (13, 27), "Si": (14, 28), "P31": (15, 31), "S": (16, 32),
    "Cl": (17, 35), "Ar": (18, 40), "K": (19, 39), "Ca": (20, 40), "Sc": (21, 45), "Ti": (22, 48), "V": (23, 51),
    "Cr": (24, 52), "Mn": (25, 55), "Fe": (26, 56), "Co": (27, 59), "Ni": (28, 59),
}  # fmt: skip
_SYMBOLS = {name.lower(): name for name in NUCLEI} | {
    "h": "p", "proton": "p", "hydrogen": "p", "helium": "He", "lithium": "Li", "carbon": "C", "nitrogen": "N", "oxygen": "O",
    "neon": "Ne", "magnesium": "Mg", "aluminium": "Al", "aluminum": "Al", "silicon": "Si", "calcium": "Ca", "iron": "Fe",
    "nickel": "Ni",
}  # fmt: skip
LEAST_MASS_GEV, MOST_MASS_GEV = 0.9, 260.0


def symbol(name: str) -> str:
    """Return the symbol in NUCLEI for a nucleus, in any case; H is the proton.

    Raises:
        ValueError: for another name; the message lists all and the nearest.
    """
    found = _SYMBOLS.get(name.strip().lower())
    if found is None:
        near = difflib.get_close_matches(name.strip().lower(), _SYMBOLS, n=1, cutoff=0.0)[0]
        msg = f"'{name}' is none of {', '.join(NUCLEI)} (H is p); the nearest is {_SYMBOLS[near]}"
        raise ValueError(msg)
    return found


def mass_gev(text: str | float) -> float:
    """Return the mass of a nucleus that is given by its symbol or as a mass in GeV.

    Raises:
        ValueError: if it is neither.
    """
    try:
        mass = to_number(text)
    except ValueError:
        return round(float(shower.mass_gev(np.array(NUCLEI[symbol(str(text))][1]))), 6)
    if not LEAST_MASS_GEV <= mass <= MOST_MASS_GEV:
        msg = f"{text}: expected a nucleus by name ({', '.join(NUCLEI)}) or its mass in GeV (proton 0.938, iron 52.1)"
        raise ValueError(msg)
    return mass

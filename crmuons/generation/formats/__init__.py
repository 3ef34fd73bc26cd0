"""The formats of other tools: the features of a muon that each format needs, and the function that writes it."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crmuons.generation.formats import corsika8, icecube, parquet, text
from crmuons.generation.formats.tracks import Sample, Tracks

Write = Callable[[Path, Iterator[Tracks], Sample], None]
DIRECTION, TIME = ("dir_x", "dir_y"), ("t_ns",)


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: its name in `--format`.
        suffix: suffix of its files.
        needs: features of a muon that it needs.
        about: its content, and the tool that reads it.
        write: writes one file.
    """

    name: str
    suffix: str
    needs: tuple[str, ...]
    about: str
    write: Write


FORMATS = {
    one.name: one
    for one in (
        Format("tracks", ".parquet", (*DIRECTION, *TIME), "tracks in Parquet, a row for each event", parquet.write),
        Format(
            "corsika8",
            ".parquet",
            (*DIRECTION, *TIME, "charge"),
            "the columns of CORSIKA 8's particles, in Parquet",
            corsika8.write,
        ),
        Format(
            "icecube",
            ".hdf5",
            (*DIRECTION, *TIME, "charge"),
            "IceCube's tables in HDF5, for simweights",
            icecube.write,
        ),
        Format("f2k", ".f2k", (*DIRECTION, *TIME), "lines of the photon propagator ppc", text.write_f2k),
        Format("mupage", ".txt", (*DIRECTION, *TIME), "the table of MUPAGE, for KM3NeT's tools", text.write_mupage),
        Format("siren", ".csv", DIRECTION, "the primaries of SIREN, a row for each muon", text.write_siren),
    )
}
CONTRACT = "parquet"  # The value of --format for the contract's own files alone.


def format_named(name: str, option: str) -> Format:
    """Return the format of a name.

    Raises:
        ValueError: for another name; the message has all names and the nearest.
    """
    if name == CONTRACT:
        msg = f"{option} {name}: the events are in this format already; expected {', '.join(FORMATS)}"
        raise ValueError(msg)
    if name not in FORMATS:
        names = [*FORMATS, *([CONTRACT] if option == "--format" else [])]
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)[0]
        msg = f"{option} {name}: expected {', '.join(names)}; the nearest is {near}"
        raise ValueError(msg)
    return FORMATS[name]

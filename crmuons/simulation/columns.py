"""Give the meaning of each number of a wide row: from the widths that the predecessor wrote, or from the user's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

IDS = ("major", "minor")
PRIMARY = ("energy", "zenith", "mass", "depth")  # In the order of schema.PRIMARY_FEATURES.
MUON = ("energy", "x", "y")
_OTHER_NAMES = {
    "primary_major_id": "major", "major_id": "major", "primary_minor_id": "minor", "minor_id": "minor",
    "energy_gev": "energy", "zenith_rad": "zenith", "mass_gev": "mass", "depth_m": "depth", "x_m": "x", "y_m": "y",
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The meaning of the numbers in a row; names that are not needed are ignored."""

    primary: tuple[str, ...]
    muons: tuple[str, ...]


KNOWN = (
    Columns((*IDS, "energy", "zenith", "mass", "time", "depth"), (*IDS, *MUON, "time")),
    Columns((*IDS, *PRIMARY), (*IDS, *MUON)),
)


def parse_columns(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the names for words like primary=major,minor,energy,zenith,mass,time,depth muons=energy,x,y,time.

    Raises:
        ValueError: if a word has another form, lacks a name that is needed, or gives a name twice.
    """
    columns = {}
    for word in words:
        part, equals, text = word.partition("=")
        if part not in ("primary", "muons") or not equals:
            msg = f"--columns {word}: expected primary=NAME,NAME,... or muons=NAME,NAME,..."
            raise ValueError(msg)
        names = tuple(_OTHER_NAMES.get(name.strip(), name.strip()) for name in text.split(","))
        needed = PRIMARY if part == "primary" else MUON
        for name in (*needed, *IDS):
            times = names.count(name)
            if times > 1 or (name in needed and not times):
                what = "is given twice" if times > 1 else "is missing"
                msg = f"--columns {word}: {name} {what}; name each number of a row, {', '.join(needed)} once"
                raise ValueError(msg)
        if (IDS[0] in names) != (IDS[1] in names):
            msg = f"--columns {word}: give both of {' and '.join(IDS)}, or neither"
            raise ValueError(msg)
        columns[part] = names
    return columns


def layout_of(primary_width: int, muon_width: int | None, columns: Mapping[str, tuple[str, ...]]) -> Columns:
    """Return the meaning of rows, from the user's names or from the widths that the predecessor wrote.

    Args:
        primary_width: numbers of a primary.
        muon_width: numbers of a muon; None if there is no muon.
        columns: from `parse_columns`.

    Raises:
        ValueError: for a width that is neither named nor known; the message has the width.
    """
    known = next((one for one in KNOWN if len(one.primary) == primary_width), None)
    layout = {}
    for part, width in (("primary", primary_width), ("muons", muon_width)):
        names = columns.get(part) or (getattr(known, part) if known else None)
        contract = PRIMARY if part == "primary" else MUON
        if names is None and width == len(contract):
            names = contract
        if names is None or (width is not None and len(names) != width):
            expected = f"--columns names {len(names)}" if part in columns and names else f"expected {len(contract)}"
            msg = (
                f"the rows of '{part}' have {width} numbers, {expected}: name each number, for example --columns "
                f"primary={','.join(KNOWN[0].primary)} muons={','.join(KNOWN[0].muons)}"
            )
            raise ValueError(msg)
        layout[part] = names
    return Columns(**layout)

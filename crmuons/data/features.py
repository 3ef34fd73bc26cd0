"""Declare the numbers of a muon: names, units and kinds, in a registry and in the metadata of files.

A muon begins with energy_gev, x_m, y_m. A file may hold more numbers; its metadata then list all of them, in their order,
under FEATURES_KEY. In the settings, a feature of KNOWN needs only its name. All other features are the user's own.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

FEATURES_KEY = b"crmuons.muon_features"
Kind = Literal["positive", "signed", "angle", "discrete"]
KINDS = {
    "positive": "above 0; its logarithm is learned",
    "signed": "any number",
    "angle": "radians, of at most two turns",
    "discrete": "whole numbers, drawn from a probability that depends on the other features",
}
SECONDS = 1e-5  # Delays are 0.01 to 1000 ns; in seconds all would be below this number.
DELAYS = 100  # Muons that are needed to decide whether the times of a file are in seconds.
DIRECTION = ("dir_x", "dir_y")


@dataclass(frozen=True)
class MuonFeature:
    """One number of a muon.

    Attributes:
        name: ends with the unit if there is one.
        unit: GeV, m, ns, rad, e, or 1.
        kind: the values that it may have; see KINDS.
        about: its meaning.
    """

    name: str
    unit: str
    kind: Kind
    about: str = ""


BASE = (
    MuonFeature("energy_gev", "GeV", "positive", "total energy at the depth"),
    MuonFeature("x_m", "m", "signed", "position across the axis, in the vertical plane through it"),
    MuonFeature("y_m", "m", "signed", "position across the axis, horizontal"),
)
# To add a feature that crmuons knows, add it here; `wrong_rows` says which values are illegal.
KNOWN = {
    feature.name: feature
    for feature in (
        *BASE,
        MuonFeature("t_ns", "ns", "signed", "time behind the shower's plane front"),
        MuonFeature("dir_x", "1", "signed", "component of the muon's direction along x"),
        MuonFeature("dir_y", "1", "signed", "component of the muon's direction along y"),
        MuonFeature("charge", "e", "discrete", "-1 or 1"),
        MuonFeature("energy_surface_gev", "GeV", "positive", "total energy at the surface"),
    )
}


def named(names: Sequence[str], option: str) -> tuple[MuonFeature, ...]:
    """Return the known features of these names.

    Raises:
        ValueError: for an unknown or a repeated name; the message begins with `option` and has the nearest name.
    """
    for name in names:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.0)[0]
            msg = f"{option} {name}: expected {', '.join(KNOWN)}; the nearest is {near}"
            raise ValueError(msg)
        if list(names).count(name) > 1:
            msg = f"{option} {name}: it is given twice; give each feature once"
            raise ValueError(msg)
    return tuple(KNOWN[name] for name in names)


def parse(words: Sequence[str], option: str = "data.features") -> tuple[MuonFeature, ...]:
    """Return the features, beyond the first three, of words like t_ns, or speed_c:positive:1 for a user's own feature.

    Raises:
        ValueError: for an unknown name without a kind, for one of the first three, and for a repeated name; the message
            begins with `option` and has the nearest name.
    """
    found: list[MuonFeature] = []
    for word in words:
        name, *rest = word.split(":")
        if name in KNOWN and not rest:
            feature = KNOWN[name]
        elif name not in KNOWN and rest and rest[0] in KINDS and len(rest) <= 2:
            feature = MuonFeature(name, rest[1] if rest[1:] else "1", rest[0])  # type: ignore[arg-type]
        else:
            near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.0)[0]
            msg = (
                f"{option}: {word} is not known; expected {', '.join(KNOWN)} (the nearest is {near}), or a feature of your own "
                f"as NAME:KIND or NAME:KIND:UNIT with the kind {', '.join(KINDS)}"
            )
            raise ValueError(msg)
        if feature in BASE or feature.name in {other.name for other in found}:
            msg = f"{option}: {name} is there already; energy_gev, x_m, y_m are always used, and each other feature is named once"
            raise ValueError(msg)
        found.append(feature)
    return tuple(found)


def columns_of(declared: Sequence[MuonFeature], wanted: Sequence[MuonFeature], source: str) -> list[int] | None:
    """Return the places of the wanted numbers in a file's muons; None if the file has exactly these, in this order.

    Raises:
        ValueError: if the file lacks a feature or declares it as another kind; the message begins with `source`.
    """
    if tuple(declared) == tuple(wanted):
        return None
    places = {feature.name: at for at, feature in enumerate(declared)}
    for feature in wanted:
        if feature.name not in places:
            msg = (
                f"{source}: its muons have no '{feature.name}' (they have {', '.join(places)}); leave it out of the features "
                "(data.features), or make the data with it"
            )
            raise ValueError(msg)
        kind = declared[places[feature.name]].kind
        if kind != feature.kind:
            msg = (
                f"{source}: '{feature.name}' is declared as {kind}, not as {feature.kind}; write {feature.name}:{kind}"
            )
            raise ValueError(msg)
    return [places[feature.name] for feature in wanted]


def metadata_of(features: Sequence[MuonFeature]) -> dict[bytes, bytes]:
    """Return the metadata of a file's schema that declare its muons; empty for the three numbers of every file."""
    if tuple(features) == BASE:
        return {}
    rows = [{name: value for name, value in asdict(feature).items() if name != "about"} for feature in features]
    return {FEATURES_KEY: json.dumps(rows).encode()}


def declared(schema: pa.Schema, source: str) -> tuple[MuonFeature, ...]:
    """Return the features that a file's schema declares, by default energy_gev, x_m, y_m.

    Raises:
        ValueError: if the declaration is damaged, does not begin with these three, or gives a known feature another unit or
            kind; the message begins with `source`.
    """
    text = (schema.metadata or {}).get(FEATURES_KEY)
    if text is None:
        return BASE
    key = FEATURES_KEY.decode()
    try:
        rows = json.loads(text)
        found = tuple(MuonFeature(str(row["name"]), str(row["unit"]), row["kind"]) for row in rows)
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{source}: the metadata '{key}' are damaged ({error}); expected a list of name, unit and kind"
        raise ValueError(msg) from error
    names = [feature.name for feature in found]
    if names[:3] != [feature.name for feature in BASE] or len(set(names)) < len(names):
        msg = f"{source}: the metadata '{key}' name {', '.join(names)}; expected energy_gev, x_m, y_m first, and each name once"
        raise ValueError(msg)
    return tuple(_checked(feature, source) for feature in found)


def _checked(feature: MuonFeature, source: str) -> MuonFeature:
    if feature.kind not in get_args(Kind):
        msg = f"{source}: feature '{feature.name}' has the kind '{feature.kind}'; expected {', '.join(KINDS)}"
        raise ValueError(msg)
    known = KNOWN.get(feature.name)
    if known is None:
        return feature
    if (feature.unit, feature.kind) != (known.unit, known.kind):
        msg = (
            f"{source}: feature '{feature.name}' is declared in {feature.unit} as {feature.kind}; crmuons keeps it in "
            f"{known.unit} as {known.kind}: convert it, or give it another name"
        )
        raise ValueError(msg)
    return known


# Why a value of a feature is illegal. Add new reasons at the end: their order gives the numbers of schema.FAULTS.
WRONG = {
    "charge": "a muon's charge is neither: a charge is -1 or 1",
    "direction": "a muon's dir_x, dir_y are no part of a unit vector: a direction across the axis has a length of 1 at most "
    "(a momentum is divided by its size)",
    "positive": "a muon's value is not positive where its feature is: a positive feature is above 0",
    "angle": "a muon's angle is beyond two turns: angles are in rad, this looks like degrees",
    "discrete": "a muon's value is not whole where its feature is discrete",
}


def wrong_rows(muons: np.ndarray, features: Sequence[MuonFeature]) -> Iterator[tuple[str, Bool[np.ndarray, " muons"]]]:
    """Yield keys of WRONG, each with the muons that have such a value beyond the first three numbers. All must be finite."""
    names = [feature.name for feature in features]
    for feature, column in zip(features[len(BASE) :], muons.T[len(BASE) :], strict=True):
        if feature.name == "charge":
            yield "charge", np.abs(column) != 1
        elif feature.kind == "positive":
            yield "positive", ~(column > 0)
        elif feature.kind == "angle":
            yield "angle", np.abs(column) > np.float32(4 * np.pi)
        elif feature.kind == "discrete":
            yield "discrete", column != np.rint(column)
    if set(DIRECTION) <= set(names):
        across = np.hypot(*(muons[:, names.index(name)].astype(np.float64) for name in DIRECTION))
        yield "direction", across > 1 + 1e-6  # 1e-6 allows for rounding.


def look_like_seconds(times: np.ndarray) -> bool:
    """Return whether times that should be in ns look like seconds, because they are so small."""
    return len(times) >= DELAYS and bool(times.any()) and float(np.abs(times).max()) < SECONDS

"""Generate a table of muons from a table of primaries: the object that `crmuons.load` returns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from jaxtyping import Float32, Int64

from crmuons.config.options import Muons, Seed, check_value
from crmuons.data import schema
from crmuons.data.events import EventArrays
from crmuons.generation.generator import BundleGenerator
from crmuons.simulation.nuclei import mass_gev

if TYPE_CHECKING:
    import awkward as ak
    import pandas as pd

EXAMPLE = "{'energy_gev': [1e6, 1e7], 'zenith_rad': 0.3, 'mass_gev': 'Fe', 'depth_m': 1900}"


class TableGenerator:
    """A trained model whose bundles come as a pandas frame or an awkward array.

    Attributes:
        generator: the model itself, for arrays and for events block by block.
    """

    def __init__(self, generator: BundleGenerator) -> None:
        self.generator = generator

    @property
    def muon_features(self) -> tuple[str, ...]:
        """Return the names of a muon's numbers, with their units."""
        return tuple(feature.name for feature in self.generator.muon_features)

    @property
    def training_ranges(self) -> dict[str, tuple[float, float]]:
        """Return the lowest and highest value of each quantity of the primaries in a sample of the training data."""
        return self.generator.training_ranges

    def __repr__(self) -> str:
        ranges = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in self.training_ranges.items())
        return f"<crmuons model of {', '.join(self.muon_features)}; trained on {ranges}>"

    @overload
    def generate(
        self,
        primaries: Any,
        *,
        seed: int = 0,
        counts: Any = None,
        max_muons: int | None = None,
        library: Literal["pd"] = "pd",
    ) -> "pd.DataFrame": ...

    @overload
    def generate(
        self, primaries: Any, *, seed: int = 0, counts: Any = None, max_muons: int | None = None, library: Literal["ak"]
    ) -> "ak.Array": ...

    def generate(
        self,
        primaries: Any,
        *,
        seed: int = 0,
        counts: Any = None,
        max_muons: int | None = None,
        library: Literal["pd", "ak"] = "pd",
    ) -> "pd.DataFrame | ak.Array":
        """Draw one bundle for each primary.

        Args:
            primaries: a pandas frame, a dict, or another table with the columns energy_gev, zenith_rad, mass_gev (a mass
                in GeV or the symbol of a nucleus) and depth_m (slant); a single value applies to all rows. Or an array
                [events, 4] in this order.
            seed: the same seed, model and primaries give the same bundles.
            counts: number of muons of each event, or one number for all; None draws it.
            max_muons: cap on the muons of an event.
            library: `pd` for pandas, `ak` for awkward, as in uproot.

        Returns:
            For `pd`, a frame with a row for each muon and a column for each of `muon_features`. Its index has the levels
            `event`, the row of the primary, and `muon`; an event without muons has no row. For `ak`, an array with a
            record for each event: `primary`, `muons` (a list of records) and `outside_training`.

        Raises:
            ValueError: if a column is missing, a primary or N is out of range, or the library is not `pd` or `ak`.
            ImportError: if the library is not installed.
        """
        if library not in {"pd", "ak"}:
            msg = f"library={library!r}: expected 'pd' for a pandas frame or 'ak' for an awkward array"
            raise ValueError(msg)
        check_value("seed", Seed, seed)
        if max_muons is not None:
            check_value("max_muons", Muons, max_muons)
        values = primaries_of(primaries)
        numbers = None if counts is None else _counts_of(counts, len(values))
        events = self.generator.generate(values, seed=seed, counts=numbers, max_muons=max_muons)
        if library == "pd":
            return _frame(events, self.muon_features)
        return _records(events, self.muon_features, self.generator.outside_training(values))


def primaries_of(table: Any) -> Float32[np.ndarray, "events 4"]:
    """Return a table of primaries as an array; see `TableGenerator.generate`.

    Raises:
        ValueError: if a column is missing, or columns have different lengths. Ranges of values are not checked.
    """
    names = _names_of(table)
    if names is None:
        values = np.asarray(table, np.float32)
        if values.ndim != 2 or values.shape[1] != len(schema.PRIMARY_FEATURES):
            msg = (
                f"primaries have shape {values.shape}, expected (events, 4): {', '.join(schema.PRIMARY_FEATURES)}; "
                f"or give columns by name, such as {EXAMPLE}"
            )
            raise ValueError(msg)
        return values
    missing = [name for name in schema.PRIMARY_FEATURES if name not in names]
    if missing:
        msg = f"the primaries have no column '{missing[0]}' (found {schema.names_shown(names)}); give for example {EXAMPLE}"
        raise ValueError(msg)
    columns = {name: _column(name, table[name]) for name in schema.PRIMARY_FEATURES}
    try:
        together = np.broadcast_arrays(*columns.values())
    except ValueError as error:
        lengths = ", ".join(f"{name} {column.size}" for name, column in columns.items())
        msg = f"the columns of the primaries have different lengths ({lengths}); give one value for each event, or one for all"
        raise ValueError(msg) from error
    return np.stack([np.atleast_1d(column) for column in together], axis=1).astype(np.float32)


def _names_of(table: Any) -> Sequence[str] | None:
    """Return the names of the columns of a frame, a mapping or records; None for plain numbers."""
    if isinstance(table, Mapping):
        return [str(name) for name in table]
    for attribute in ("columns", "fields"):  # pandas has `columns`, awkward `fields`.
        names = getattr(table, attribute, None)
        if names is not None and len(names):
            return [str(name) for name in names]
    names = getattr(getattr(table, "dtype", None), "names", None)
    return None if names is None else list(names)


def _column(name: str, values: Any) -> np.ndarray:
    column = np.asarray(values)
    if name == "mass_gev" and column.dtype.kind in "OUST":  # Symbols of nuclei, perhaps among masses.
        column = np.array([mass_gev(str(value)) for value in column.ravel()]).reshape(column.shape)
    try:
        column = column.astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"column '{name}' of the primaries holds {column.ravel()[0]!r}; expected numbers"
        raise ValueError(msg) from error
    if column.ndim > 1:
        msg = f"column '{name}' of the primaries has shape {column.shape}; expected one value for each event"
        raise ValueError(msg)
    return column


def _counts_of(counts: Any, events: int) -> Int64[np.ndarray, " events"]:
    numbers = np.asarray(counts)
    if numbers.dtype.kind not in "iu" or numbers.shape not in {(), (events,)}:
        msg = f"counts have shape {numbers.shape} and type {numbers.dtype}; expected a whole number for each of {events} events, or one for all"
        raise ValueError(msg)
    return np.broadcast_to(numbers, events).astype(np.int64)


def _frame(events: EventArrays, names: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd  # noqa: PLC0415  # The import takes 0.5 CPU-seconds, and some GPU machines lack pandas.

    number = np.repeat(np.arange(len(events.counts)), events.counts)
    first = np.repeat(np.cumsum(events.counts) - events.counts, events.counts)
    index = pd.MultiIndex.from_arrays([number, np.arange(len(number)) - first], names=["event", "muon"])
    return pd.DataFrame(events.muons, index=index, columns=list(names))


def _records(events: EventArrays, names: Sequence[str], outside: np.ndarray) -> "ak.Array":
    try:
        import awkward as ak  # noqa: PLC0415  # an extra
    except ImportError as error:
        msg = "library='ak' needs the package awkward: pip install 'crmuons[awkward]'"
        raise ImportError(msg) from error
    muons = ak.zip({name: np.ascontiguousarray(events.muons[:, at]) for at, name in enumerate(names)})
    primary = ak.zip({name: events.primaries[:, at] for at, name in enumerate(schema.PRIMARY_FEATURES)})
    fields = {"primary": primary, "muons": ak.unflatten(muons, events.counts), "outside_training": outside}
    return ak.zip(fields, depth_limit=1)

"""Say which events are used (split, muon cap, staging), and assign showers to splits by a hash of their ids."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, UInt64

from crmuons import config
from crmuons.data import features
from crmuons.data.features import BASE, MuonFeature
from crmuons.storage.identity import Digests
from crmuons.storage.staging.download import Staging

Split = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class Selection:
    """Which events to read, and where to keep the events that are left out.

    Attributes:
        split: the split of the showers.
        validation_share, test_share: shares of the showers in these splits.
        vertical_depth: whether the files' depth_m is the vertical depth.
        max_muons: events with more muons go to `outliers`.
        quarantine, outliers: directories; None to count without writing.
        muons_per_event: bring this many randomly drawn muons to the front of each event that has more. None: keep the
            file's order.
        skip_missing: leave out files that are gone, damaged or not the listed ones, instead of stopping.
        features: numbers of a muon to read beyond the first three.
        fold: k and K: the showers that are not in the test split are cut into K parts. Part k is the validation split, and
            the others are the training split; validation_share then has no effect.
        staging: copies remote files to a local directory before they are read; None to read them at their URL.
        digests: digests of remote files from earlier openings. This reading is compared with them and adds its own; None
            to do neither.
    """

    split: Split = "all"
    validation_share: float = 0.0
    test_share: float = 0.0
    vertical_depth: bool = False
    max_muons: int | None = None
    quarantine: str | None = None
    outliers: str | None = None
    muons_per_event: int | None = None
    skip_missing: bool = False
    staging: Staging | None = None
    digests: Digests | None = None
    features: tuple[MuonFeature, ...] = ()
    fold: tuple[int, int] | None = None

    @property
    def muon_features(self) -> tuple[MuonFeature, ...]:
        """Return all numbers of a muon."""
        return (*BASE, *self.features)

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the range [low, high) of the split coordinate of the split's showers; see `split_coordinates`.

        With a fold, training and validation have the same range, and `chosen` divides the showers between them.
        """
        if self.fold is not None and self.split in {"train", "validation"}:
            return (self.test_share, 1.0)
        test, held_out = self.test_share, self.test_share + self.validation_share
        return {"test": (0.0, test), "validation": (test, held_out), "train": (held_out, 1.0), "all": (0.0, 1.0)}[
            self.split
        ]


def in_split(ids: UInt64[np.ndarray, "events 2"], selection: Selection) -> Bool[np.ndarray, " events"]:
    """Return which events belong to the split. Only the shower's ids decide, not the machine or the files."""
    return chosen(ids, selection, (0.0, 1.0))


def chosen(
    ids: UInt64[np.ndarray, "events 2"], selection: Selection, hash_range: tuple[float, float]
) -> Bool[np.ndarray, " events"]:
    """Return which showers belong to the split; `hash_range` is known to hold all their split coordinates."""
    inside = within_bounds(ids, selection.bounds, hash_range)
    if selection.fold is None or selection.split not in {"train", "validation"}:
        return inside
    part, parts = selection.fold
    place = (split_coordinates(ids) - selection.test_share) / (1 - selection.test_share)
    of_part = np.floor(place * parts).astype(np.int64) == part
    return inside & (of_part == (selection.split == "validation"))


def within_bounds(
    ids: UInt64[np.ndarray, "events 2"], bounds: tuple[float, float], hash_range: tuple[float, float]
) -> Bool[np.ndarray, " events"]:
    """Return which showers have their split coordinate within `bounds`.

    Args:
        ids: ids of the showers.
        bounds: range [low, high).
        hash_range: range that is known to hold all coordinates. If it lies inside or outside `bounds`, nothing is
            hashed.
    """
    (first, last), (low, high) = bounds, hash_range
    if first <= low and high <= last:
        return np.ones(len(ids), bool)
    if high <= first or last <= low:
        return np.zeros(len(ids), bool)
    coordinate = split_coordinates(ids)
    return (coordinate >= first) & (coordinate < last)


def split_coordinates(ids: UInt64[np.ndarray, "events 2"]) -> Float64[np.ndarray, " events"]:
    """Hash shower ids to numbers that are uniform on [0, 1).

    The lowest numbers belong to the test split, the next to validation, the rest to training; see Selection.bounds.
    """
    return (_mix(_mix(ids[:, 0]) ^ ids[:, 1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Apply the finaliser of SplitMix64 (Steele et al. 2014): every input bit changes every output bit."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def training_selection(data: config.Data, run_directory: str | None, muons_per_event: int | None = None) -> Selection:
    """Return the selection of the training events.

    Args:
        data: the settings.
        run_directory: directory or URL that gets the quarantine and the outliers; None to keep neither.
        muons_per_event: see Selection.
    """
    caps = [cap for cap in (data.max_muons_per_event, data.max_muons_per_batch) if cap is not None]
    return Selection(
        split="train",
        # With separate validation files, every shower of the training files may be used for training.
        validation_share=0.0 if data.validation else data.validation_share,
        test_share=data.test_share,
        vertical_depth=data.depth == "vertical",
        max_muons=min(caps, default=None),
        quarantine=None if run_directory is None else f"{run_directory}/quarantine",
        outliers=None if run_directory is None else f"{run_directory}/outliers",
        muons_per_event=muons_per_event,
        skip_missing=data.skip_missing,
        staging=Staging.of(data.staging),
        features=features.parse(data.features),
        fold=data.fold,
    )

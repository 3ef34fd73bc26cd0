"""The further features of a muon as an evaluation compares them.

The direction is turned into the muon's own frame, along the radius and across it. A positive feature is compared as its
log10. The networks use the same formula with a scaling by the energy (`crmuons.models.extra.ExtraFeatures`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from crmuons.data.events import EventArrays
from crmuons.data.features import BASE, MuonFeature
from crmuons.models.extra import DIRECTION, ExtraFeatures

ALONG, ACROSS = "dir_along", "dir_across"
TURNED = {
    ALONG: "direction along the radius, outward",
    ACROSS: "direction across the radius",
}


@dataclass(frozen=True)
class Column:
    """One number of a muon that is compared.

    Attributes:
        name: name of the feature, or `dir_along` and `dir_across` for a direction.
        label: label for figures and tables, with the unit.
        kind: kind of the feature; see crmuons.data.features.KINDS. A positive feature is compared as its log10.
    """

    name: str
    label: str
    kind: str


def columns(further: Sequence[MuonFeature]) -> list[Column]:
    """Return the numbers that are compared for these features: the smooth ones, then the discrete ones."""
    layout = _layout(further)
    names = [further[at].name for at in layout.smooth]
    for place, turned in zip(layout.direction, TURNED, strict=False):
        names[place] = turned
    smooth = [_column(further[at], name) for at, name in zip(layout.smooth, names, strict=True)]
    return [*smooth, *(_column(further[at], further[at].name) for at in layout.discrete)]


def values(events: EventArrays, further: Sequence[MuonFeature]) -> Float32[np.ndarray, "muons columns"]:
    """Return the `columns` of each muon."""
    if not further:
        return np.empty((len(events.muons), 0), np.float32)
    layout, muons = _layout(further), torch.from_numpy(np.array(events.muons))
    discrete = [muons[:, len(BASE) + at] for at in layout.discrete]
    return torch.stack([*layout.to_columns(muons), *discrete], dim=1).numpy()


def in_common(further: Sequence[MuonFeature], *sets: EventArrays) -> tuple[MuonFeature, ...]:
    """Return the features if all sets of events have them, otherwise none. Baselines do not make them."""
    width = len(BASE) + len(further)
    return tuple(further) if all(events.muons.shape[1] == width for events in sets) else ()


def _layout(further: Sequence[MuonFeature]) -> ExtraFeatures:
    return ExtraFeatures([(feature.name, feature.kind) for feature in further])


def _column(feature: MuonFeature, name: str) -> Column:
    unit = "" if feature.unit == "1" else f" [{feature.unit}]"
    if name in TURNED and feature.name in DIRECTION:
        return Column(name, TURNED[name], feature.kind)
    return Column(name, f"{'log10 ' if feature.kind == 'positive' else ''}{name}{unit} of a muon", feature.kind)

"""The shapes and dtypes in the annotations of crmuons are checked while the tests run."""

import importlib
import sys

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from crmuons.data.events import EventArrays
from crmuons.training import losses
from tests.shapes import check_shapes

MODULE = """
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

Rows = Float32[np.ndarray, "rows 2"] | None


@dataclass
class Table:
    rows: Rows
    counts: Int64[np.ndarray, " rows"]

    @property
    def first(self) -> Float32[np.ndarray, " 2"]:
        return self.rows[:, 0]

    @classmethod
    def of(cls, rows: Rows, twice: bool) -> "Table":
        return cls(rows, np.zeros(len(rows) * (1 + twice), np.int64))


def rows(table: tuple[Rows, int]) -> Float32[np.ndarray, " rows"]:
    return table[0].sum(axis=table[1])
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    (folder / "shapes_probe.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "meta_path", list(sys.meta_path))
        check_shapes(["shapes_probe"])
        yield importlib.import_module("shapes_probe")
    del sys.modules["shapes_probe"]


ROWS = np.zeros((3, 2), np.float32)


def test_what_agrees_passes(probe):
    assert probe.rows((ROWS, 1)).shape == (3,)
    assert len(probe.Table.of(ROWS, twice=False).counts) == 3
    assert probe.Table.of(ROWS[:2], twice=False).first.shape == (2,)


@pytest.mark.parametrize(
    "call",
    [
        lambda probe: probe.rows((ROWS.T, 1)),
        lambda probe: probe.rows((ROWS.astype(np.float64), 1)),
        lambda probe: probe.rows((ROWS, 0)),  # It returns 2 numbers.
        lambda probe: probe.Table(ROWS, np.zeros(2, np.int64)),
        lambda probe: probe.Table.of(ROWS, twice=True),
        lambda probe: probe.Table.of(ROWS, twice="no"),
        lambda probe: probe.Table(ROWS, np.zeros(3, np.int64)).first,
    ],
    ids=["shape", "dtype", "returned", "dataclass", "size of another argument", "no array", "property"],
)
def test_what_does_not_agree_is_refused(probe, call):
    with pytest.raises(TypeCheckError):
        call(probe)


def test_the_products_modules_are_checked():
    with pytest.raises(TypeCheckError):
        losses.one_centred_penalty(torch.zeros(3, 1))
    with pytest.raises(TypeCheckError):
        EventArrays(*[np.zeros((2, 4), np.float32)] * 4)

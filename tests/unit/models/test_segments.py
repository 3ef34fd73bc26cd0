"""Sums over the muons of each event, and the events' rows for the muons, by torch and by Triton."""

import sys

import pytest
import torch
from torch.nn.functional import leaky_relu

from crmuons.models import segments
from crmuons.models.formulas import SLOPE

COUNTS = [3, 0, 40, 1, 0, 17]


def drawn(width, dtype=torch.float32, device="cpu"):
    """Counts, events of the muons, and random rows of the muons and of the events."""
    source = torch.Generator().manual_seed(width)
    counts = torch.tensor(COUNTS)
    events = torch.repeat_interleave(torch.arange(len(COUNTS)), counts)
    muons, rows = (torch.randn(n, width, generator=source) for n in (len(events), len(COUNTS)))
    return counts.to(device), events.to(device), muons.to(device, dtype), rows.to(device, dtype)


def test_a_layer_is_its_product_its_events_row_and_leaky_relu():
    _, events, muons, rows = drawn(24)
    weight, signs = torch.randn(24, 24), torch.randn(len(muons), 24)
    sums = muons @ weight.T + rows[events]
    torch.testing.assert_close(segments.linear_leaky(muons, weight, rows, events), leaky_relu(sums, SLOPE))
    slopes = torch.where(signs > 0, 1.0, SLOPE)  # Of an earlier pass.
    torch.testing.assert_close(segments.linear_leaky(muons, weight, rows, events, signs), sums * slopes)


def test_without_triton_torch_takes_its_place_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)  # As if it were not installed.
    monkeypatch.delitem(sys.modules, "crmuons.models.triton_segments", raising=False)
    segments._kernels.cache_clear()
    assert segments._kernels(torch.device("cpu")) is None
    assert segments._kernels(torch.device("cpu")) is None
    segments._kernels.cache_clear()
    assert len(caplog.records) == 1
    assert "Triton's kernels cannot be used on this machine" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's kernels run on a GPU")
@pytest.mark.parametrize("dtype", segments.DTYPES)
@pytest.mark.parametrize("width", [16, 24, 64])
def test_triton_gives_the_sums_and_rows_of_torch(width, dtype):
    from crmuons.models import triton_segments

    counts, events, muons, rows = drawn(width, dtype, "cuda")
    sums = torch.zeros(len(counts), width, device="cuda").index_add_(0, events, muons.float()).to(dtype)
    starts = counts.cumsum(0) - counts
    torch.testing.assert_close(triton_segments.segment_sum(muons, starts, counts), sums)
    assert torch.equal(triton_segments.spread(rows, events), rows[events])
    halves = torch.cat([rows, rows], dim=1)[:, width:]  # Rows that are not neighbours in memory.
    assert torch.equal(triton_segments.spread(halves, events), rows[events])
    for signs in (None, muons.flip(0)):
        added = triton_segments.add_spread_leaky_(muons.clone(), rows, events, signs, SLOPE)
        total = muons.float() + rows[events].float()
        slopes = torch.where((total if signs is None else signs) > 0, 1.0, SLOPE)
        torch.testing.assert_close(added, (total * slopes).to(dtype))

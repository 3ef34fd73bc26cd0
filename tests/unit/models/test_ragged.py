"""Sums over events against plain loops, and their first and second derivatives against finite differences."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from crmuons.models.ragged import Ragged

LAYOUTS = [[3, 1, 2], [0, 2, 0, 1, 0], [0, 0], [], [5], [0, 4]]


def layout(counts):
    return Ragged.from_counts(torch.tensor(counts, dtype=torch.int64))


def values_of(counts, dtype=torch.float64, features=2):
    source = torch.Generator().manual_seed(1)
    return torch.randn(sum(counts), features, dtype=dtype, generator=source)


@pytest.mark.parametrize("counts", LAYOUTS)
def test_sum_mean_and_spread_equal_loops(counts):
    values, ragged = values_of(counts), layout(counts)
    pieces = values.split(counts) if counts else ()
    zero = torch.zeros(2, dtype=torch.float64)
    sums = torch.stack([piece.sum(0) for piece in pieces]) if counts else torch.zeros(0, 2, dtype=torch.float64)
    means = torch.stack([piece.mean(0) if len(piece) else zero for piece in pieces]) if counts else sums
    torch.testing.assert_close(ragged.sum(values), sums, rtol=1e-14, atol=1e-14)  # Double stays double.
    torch.testing.assert_close(ragged.mean(values), means, rtol=1e-14, atol=1e-14)
    rows = torch.arange(2.0 * len(counts), dtype=torch.float64).reshape(-1, 2)
    spread = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    assert torch.equal(ragged.broadcast(rows), torch.stack(spread) if spread else rows[:0])


@pytest.mark.parametrize("counts", LAYOUTS)
def test_first_and_second_derivatives(counts):
    ragged = layout(counts)
    values = values_of(counts).requires_grad_()
    rows = torch.randn(len(counts), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def to_events(x):
        return ragged.sum(x**2) * ragged.mean(x) ** 2

    def to_muons(x):
        return ragged.broadcast(x**2) * ragged.broadcast(x.sin())

    for function, x in ((to_events, values), (to_muons, rows)):
        assert gradcheck(function, (x,))
        assert gradgradcheck(function, (x,))


@pytest.mark.parametrize("counts", [[3, 1, 2], [5], []])
def test_the_maximum_and_its_derivatives(counts):
    ragged, values = layout(counts), values_of(counts).requires_grad_()
    pieces = [piece.amax(0) for piece in values.split(counts)] if counts else []
    expected = torch.stack(pieces) if counts else torch.zeros(0, 2, dtype=torch.float64)
    assert torch.equal(ragged.max(values), expected)
    assert gradcheck(lambda x: ragged.max(x**2), (values,))
    assert gradgradcheck(lambda x: ragged.max(x**2), (values,))
    assert ragged.max(values.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0]])
def test_without_muons_or_events_there_are_gradients_of_no_muons(counts):
    ragged = layout(counts)
    values = torch.zeros(0, 3, requires_grad=True)
    rows = torch.ones(len(counts), 3, requires_grad=True)
    (ragged.sum(values).sum() + ragged.mean(values).sum() + ragged.broadcast(rows).sum()).backward()
    assert values.grad.shape == (0, 3)
    assert torch.equal(rows.grad, torch.zeros(len(counts), 3))


def test_sums_in_bfloat16_do_not_stop_growing():
    # In bfloat16 256 + 1 is 256: a sum taken there would end at 256.
    ragged = layout([1000, 0, 1])
    ones = torch.ones(1001, 1, dtype=torch.bfloat16)
    assert ragged.sum(ones).dtype == torch.bfloat16
    assert ragged.sum(ones).tolist() == [[1000.0], [0.0], [1.0]]
    assert ragged.mean(ones).tolist() == [[1.0], [0.0], [1.0]]
    rows = torch.ones(3, 1, dtype=torch.bfloat16, requires_grad=True)
    ragged.broadcast(rows).sum().backward()
    assert rows.grad.tolist() == [[1000.0], [0.0], [1.0]]


def test_single_precision_sums_of_a_huge_event_are_right():
    # A running sum of n equal numbers in float32 is off by about n x 6e-8: 0.1 % at 20,000.
    values = torch.full((20_000, 1), 0.1)
    assert layout([20_000]).sum(values).item() == pytest.approx(2_000, rel=1e-3)


def test_the_layout_of_a_batch_and_of_twice_its_events(toy_events):
    events = toy_events(10)
    ragged = Ragged.from_counts(torch.from_numpy(events.counts))
    assert ragged.event_of_muon.tolist() == np.repeat(np.arange(len(events.counts)), events.counts).tolist()
    values = torch.from_numpy(events.muons)
    sums = ragged.sum(values)
    torch.testing.assert_close(ragged.twice.sum(torch.cat([values, 2 * values])), torch.cat([sums, 2 * sums]))
    assert ragged.twice is ragged.twice  # Made once.

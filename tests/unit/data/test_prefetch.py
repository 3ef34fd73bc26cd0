"""Threads that run ahead: order, how many at once, errors, and an end that waits for nobody."""

import threading
import time

import pytest

from crmuons.data.prefetch import ordered_map


def test_results_come_in_the_entries_order_while_several_are_in_hand() -> None:
    together = threading.Barrier(4)  # Broken where fewer than four are in hand at once.

    def work(number: int) -> int:
        together.wait(30)
        time.sleep(0.001 * (7 - number))
        return number**2

    assert list(ordered_map(work, range(8), 4, "work")) == [number**2 for number in range(8)]


def test_no_more_are_begun_than_may_be_in_hand() -> None:
    begun: list[int] = []
    results = ordered_map(lambda number: begun.append(number) or number, range(100), 3, "work")
    assert next(results) == 0
    results.close()
    assert len(begun) <= 4


def test_an_error_comes_where_its_result_was_due_and_ends_the_threads() -> None:
    def work(number: int) -> int:
        if number == 2:
            msg = "no 2"
            raise ValueError(msg)
        return number

    results = ordered_map(work, range(100), 4, "failing")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="no 2"):
        next(results)
    deadline = time.monotonic() + 30
    while any(thread.name == "failing" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)

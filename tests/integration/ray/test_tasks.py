"""`map_unordered` on a real cluster of two CPUs."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crmuons.ray_backend.tasks import map_unordered

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]


def test_results_come_as_tasks_finish_and_few_items_are_taken_ahead(tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(9):
            taken.append(item)
            yield item

    def square(item: int) -> int:
        while item == 0 and not (tmp_path / "release").exists():  # The first task waits until others have finished.
            time.sleep(0.02)
        return item * item

    results = map_unordered(square, items(), ahead=2)
    first = next(results)
    assert first in {1, 4, 9}
    assert taken == list(range(5))  # 2 CPUs with 2 tasks each, and one more for the one that finished.
    (tmp_path / "release").touch()
    assert sorted([first, *results]) == [item * item for item in range(9)]


def test_an_error_is_raised_as_the_function_raised_it() -> None:
    def fail(item: int) -> int:
        msg = f"item {item} is no good"
        raise FileNotFoundError(msg)

    with pytest.raises(FileNotFoundError) as error:
        list(map_unordered(fail, [7]))
    assert type(error.value) is FileNotFoundError
    assert str(error.value) == "item 7 is no good"


def test_no_items_give_no_results() -> None:
    assert list(map_unordered(str, [])) == []

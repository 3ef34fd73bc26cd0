"""Differences between a stored request and the present request."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    keys: Iterable[str] | None = None,
    show: Callable[[Any], str] = str,
    missing: object = None,
) -> list[str]:
    """Return a phrase "KEY was A, is B" for each key whose values differ; no phrase means the same request.

    Args:
        before: the stored request.
        now: the present request.
        keys: the keys to compare, in the order of the phrases; by default those of `now`.
        show: turns a value into text.
        missing: shown in place of a value that one side does not have.
    """
    return [
        f"{key} was {show(before.get(key, missing))}, is {show(now.get(key, missing))}"
        for key in (now if keys is None else keys)
        if before.get(key) != now.get(key)
    ]

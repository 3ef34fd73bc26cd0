"""The types of the options of all commands. A type says which values are valid, and one reader refuses all others.

An option is declared with `type=option(KIND)`, where KIND is one of the types below, or `Annotated[int, Field(ge=1,
le=9)]`; the same type annotates the field of the library's dataclass, which `check` compares. Numbers are finite.
"""

import argparse
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from crmuons.config.schemes import check_scheme

MOST_LETTERS = 1000  # Longest path or URL. An error shows the whole name.
MAX_SHOWN = 80  # Characters of a wrong value in a message.
# The last range is what Python makes of bytes that are not UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Expected:
    """Part of a type: what an error says after "expected", in place of the range alone."""

    text: str


def named(place: str) -> str:
    """Return the name of something.

    Raises:
        ValueError: if it is empty, longer than a file system takes, or has control characters.
    """
    if not place.strip():
        msg = "the name is empty, perhaps from a variable that is not set; give a name"
        raise ValueError(msg)
    if len(place) > MOST_LETTERS:
        msg = f"'{_cut(place)}' has {len(place)} letters; give a shorter name, at most {MOST_LETTERS}"
        raise ValueError(msg)
    if _CONTROL.search(place):
        msg = f"{place!r} has control characters or is not UTF-8; rename it"
        raise ValueError(msg)
    if place.startswith(("http://", "https://")) and not _has_host(place):
        msg = f"'{place}' is no URL: its host or port is not valid; give one such as https://host:443/path"
        raise ValueError(msg)
    return place


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # A port of 99999, or a bracket without its end.
        return False


def check_place(place: str) -> str:
    """Refuse a place for results that keeps nothing: an empty name, or the memory of this process.

    Raises:
        ValueError: with the place and the remedy.
    """
    if "memory:/" in place:  # A Path has one slash.
        msg = f"'{place}' lasts only as long as this command, so nothing would be kept; name a directory or another URL"
        raise ValueError(msg)
    if re.match("file:/(?!//)", place):
        msg = f"'{place}' would be a directory 'file:'; give the path alone"
        raise ValueError(msg)
    return place


def _path(place: str) -> Path:
    if "://" in place:
        msg = f"'{place}' is a URL; give a path of this machine, and copy to the URL or from it yourself"
        raise ValueError(msg)
    return Path(place)


# Upper bounds are far above what anybody uses and below what exhausts a machine.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # Seeds become shower ids, which Arrow and numpy take as signed too.
Events = Annotated[int, Field(ge=1, le=10**10)]
BatchEvents = Annotated[int, Field(ge=1, le=2**24)]
ADVISED_EVENTS = 20_000  # Events of a sample in an evaluation. With fewer, real differences stay hidden.
SampleEvents = Annotated[
    int, Field(ge=1, le=10**9), Expected(f"1 to 1e9 events for each sample, and better {ADVISED_EVENTS:,}")
]
Counts = Annotated[  # Where the number of muons comes from.
    Literal["predict", "column"] | Annotated[int, Field(ge=0, le=10**8)],
    Expected("predict, column, or a number of muons from 0 to 1e8"),
]
Rows = Annotated[int, Field(ge=0, le=10**12)]
Muons = Annotated[int, Field(ge=1, le=10**8)]
Processes = Annotated[int, Field(ge=0, le=4096)]
Threads = Annotated[int, Field(ge=1, le=4096)]
Rounds = Annotated[int, Field(ge=1, le=10_000)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
Minutes = Annotated[float, Field(gt=0, le=1e7)]
Seeds = Annotated[int, Field(ge=1, le=1000)]
LEAST_SHOWERS = 20  # One of them validates a training.
ShowerNumbers = Annotated[
    tuple[Annotated[int, Field(ge=LEAST_SHOWERS, le=10**7)], ...],
    BeforeValidator(lambda words: words.split(",") if isinstance(words, str) else words),
    Expected(f"numbers of showers from {LEAST_SHOWERS} to 10 million with commas between them, such as 200,600,2000"),
]
Members = Annotated[int, Field(ge=2, le=100), Expected("2 to 100 members")]  # Models of an ensemble.
Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[str, AfterValidator(named), AfterValidator(check_scheme), Expected("a path or a URL")]
Server = Annotated[str, AfterValidator(named), Expected("the address of a tracking server or store")]
Output = Annotated[Place, AfterValidator(check_place), Expected("a directory or a URL for the results")]
LocalPath = Annotated[Output, AfterValidator(_path), Expected("a path of this machine")]
Word = Annotated[str, AfterValidator(named), Expected("a word")]


class Reader:
    """Turns the word of an option into its value; see `option`."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.expected = kind, expected(kind)
        self._adapter = _adapter(kind)

    def __call__(self, word: str) -> Any:
        """Return the value.

        Raises:
            argparse.ArgumentTypeError: with the word and what is expected.
        """
        try:
            return self._adapter.validate_python(word)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(_fault(word, error, self.expected)) from error


def to_number(text: str | float) -> float:
    """Return the number that a text stands for, perhaps infinity or NaN; `float` would also take the digits of other scripts.

    Raises:
        ValueError: if it is no number.
    """
    try:
        return float(_NUMBER.validate_python(text))
    except ValidationError as error:
        raise ValueError(_fault(text, error, "a number")) from error


def option(kind: Any) -> Callable[[str], Any]:
    """Return what reads an option of a type, for argparse's `type`."""
    return Reader(kind)


def check(settings: Any, **options: str) -> None:
    """Check the fields of a dataclass by their types.

    Args:
        settings: an instance of a dataclass.
        options: the options of fields whose names are not their options': energy_gev="--energy-range".

    Raises:
        ValueError: with the first option that is wrong, its value and what is expected.
    """
    for name, kind in get_type_hints(type(settings), include_extras=True).items():
        check_value(options.get(name, f"--{name.replace('_', '-')}"), kind, getattr(settings, name))


def check_value(option: str, kind: Any, value: Any) -> None:
    """Raise a ValueError that names the option unless the value is of the type."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        item = value[place[0]] if place and isinstance(value, tuple) and isinstance(place[0], int) else value
        msg = f"{option} {_fault(item, error, expected(kind))}"
        raise ValueError(msg) from error


def expected(kind: Any) -> str:
    """Return which values a type takes, in words."""
    if get_origin(kind) is not Annotated:
        inner = [each for each in get_args(kind) if each not in (type(None), Ellipsis)]
        return expected(inner[0]) if inner else {int: "a whole number", float: "a number"}.get(kind, "another value")
    base, *parts = get_args(kind)
    if said := [part.text for part in parts if isinstance(part, Expected)]:
        return said[-1]
    limits = [limit for part in parts for limit in (part.metadata if isinstance(part, FieldInfo) else [part])]
    return " ".join([expected(base), *filter(None, map(_limit, limits))])


def _limit(limit: object) -> str:
    match limit:
        case Ge(ge=least):
            return f"from {least}"
        case Gt(gt=least):
            return f"above {least}"
        case Le(le=most):
            return f"to {most}"
        case Lt(lt=most):
            return f"below {most}"
    return ""


@functools.cache  # Making an adapter takes milliseconds, and a command has dozens of options.
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


_NUMBER = TypeAdapter(float)


def _fault(value: object, error: ValidationError, expects: str) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":  # A function of the type raised it; its message is complete.
        said = str(first["msg"]).removeprefix("Value error, ")
        return said.replace(value, _cut(value)) if isinstance(value, str) and value else said
    value = f"{value:g}" if isinstance(value, float) else value
    text = value if isinstance(value, str) and value.strip() and value.isprintable() else repr(value)
    return f"{_cut(text)}: expected {expects}"


def shown(value: object) -> str:
    """Return a value for a message: in quotation marks, without control characters, and of limited length."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."

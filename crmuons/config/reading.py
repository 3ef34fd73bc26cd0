"""Read the settings of a run: a TOML preset, `section.key=value` words, or the dictionary that a run keeps.

Later values win: the defaults, then the preset, then the words.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from crmuons.config.sections import Config, Section, flatten

# Values of model.kind. Runs and models made before 0.2 hold the old one.
OLD_KIND, NEW_KIND = "baseline", "predecessor"


def load(preset: Path | None, words: Sequence[str] = ()) -> Config:
    """Return the settings of a preset, changed by words.

    Args:
        preset: a TOML file; None for the defaults alone.
        words: `section.key=value` with the value in TOML; text that is not TOML is a string.

    Raises:
        ValueError: for a word without `=`, a value out of range, or an unknown key (with the nearest valid one).
        FileNotFoundError: if the preset does not exist.
    """
    tree: dict[str, Any] = {"train": {}}
    if preset is not None:
        tree |= _read_preset(preset)
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            msg = f"'{word}' is not of the form section.key=value"
            raise ValueError(msg)
        _set(tree, path.strip(), _value(text))
    model = tree.get("model")
    if isinstance(model, dict) and model.get("kind") == OLD_KIND:
        msg = f"model.kind = '{OLD_KIND}' is '{NEW_KIND}' now, the predecessor's networks; the default is 'set'"
        raise ValueError(msg)
    return from_dict(_with_name(tree, preset))


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Return the settings of a nested dictionary.

    Raises:
        ValueError: listing every fault.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(_describe_fault(fault) for fault in error.errors())) from error


def from_stored(tree: Mapping[str, Any]) -> Config:
    """Return settings that were stored with a run, also those of an older crmuons with other names."""
    return from_dict(with_new_names(tree))


def with_new_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings with old values replaced by their names of today."""
    model = tree.get("model", {})
    if model.get("kind") == OLD_KIND:
        return {**tree, "model": {**model, "kind": NEW_KIND}}
    return dict(tree)


def changed(settings: Config, values: Mapping[str, Any]) -> Config:
    """Return settings with other values under some dotted paths.

    Raises:
        ValueError: for an unknown path, with the nearest valid one, or a value out of range.
    """
    tree = settings.model_dump(mode="json")
    for path, value in values.items():
        _set(tree, path, value)
    return from_dict(tree)


def settings() -> dict[str, tuple[str, str]]:
    """Return the default and the meaning of every setting, by dotted path."""
    return dict(_describe(Config))


def _read_preset(preset: Path) -> dict[str, Any]:
    if not preset.is_file():
        new = preset.with_name("default.toml")
        hint = f"it is {new} now" if preset.name == "baseline.toml" else "the presets of crmuons are in jobs/configs"
        msg = f"no preset at {preset}; {hint}"
        raise FileNotFoundError(msg)
    try:
        return tomllib.loads(
            preset.read_text(encoding="utf-8-sig")
        )  # Some editors begin a file with a byte order mark.
    except UnicodeDecodeError as error:
        msg = f"{preset} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        raise ValueError(msg) from error
    except tomllib.TOMLDecodeError as error:
        msg = f"{preset} is not TOML: {error}"
        raise ValueError(msg) from error


def _with_name(tree: dict[str, Any], preset: Path | None) -> dict[str, Any]:
    """Name an unnamed run by its preset and digest, so that the same settings find the same run again."""
    run = tree.get("run", {})
    if not isinstance(run, dict) or run.get("name"):
        return tree
    stem = preset.stem if preset is not None else "run"
    name = f"{stem}-{from_dict(tree).digest()}"
    return tree | {"run": run | {"name": name}}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # A bare word is a string.


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        below = tree.get(section)
        tree[section] = below if isinstance(below, dict) else {}  # The validation reports a section that was a value.
        tree = tree[section]
    tree[key] = value


def _describe_fault(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        value = "" if fault["type"] == "missing" or isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
        return f"{path or 'config'}: {fault['msg'].removeprefix('Value error, ')}{value}"
    if isinstance(
        fault["input"], dict
    ):  # For an unknown section, compare its first setting: it is closer to the intended path.
        path = next((f"{path}.{below}" for below, _ in flatten(fault["input"])), path)
    near = difflib.get_close_matches(path, settings(), n=1, cutoff=0.0)
    return f"unknown setting '{path}'; the nearest valid one is '{near[0]}'"


def _describe(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _describe(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield f"{prefix}{name}", ("unset" if default is None else repr(default), field.description or "")

"""Read the settings of a run: a TOML preset, `section.key=value` words, or the dictionary that a run keeps.

Later values win: the defaults, then the preset, then the words.
"""

import codecs
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from crmuons.config.base import NONE, Section, can_be_unset, flatten
from crmuons.config.hints import OTHER_NAMES, nearest, why_left_out
from crmuons.config.options import named
from crmuons.config.sections import Config

# Values of model.kind. Runs and models made before 0.2 hold the old value.
OLD_KIND, NEW_KIND = "baseline", "predecessor"

# The presets of crmuons are inside the package, so that an installed wheel has them too. Before 0.2 they were in the
# checkout at OLD_PRESETS; paths in users' scripts still find them.
PRESETS, OLD_PRESETS = Path(__file__).parent / "presets", ("jobs", "configs")

MAX_SHOWN = 80  # Characters of a wrong value in a message.


def load(preset: Path | str | None, words: Sequence[str] = ()) -> Config:
    """Return the settings of a preset, changed by words.

    Args:
        preset: a TOML file, or the name of a preset of crmuons; None for the defaults alone.
        words: `section.key=value` with the value in TOML; text that is not TOML is a string. The value `none` unsets a
            setting: the preset's value is forgotten, and a setting that can be without a value has none.
            A step limit replaces the preset's time limit.

    Raises:
        ValueError: for a word without `=`, a value out of range, or an unknown key (with the nearest valid one).
        FileNotFoundError: if the preset does not exist.
    """
    tree: dict[str, Any] = {"train": {}}
    path = None if preset is None else find_preset(preset)
    if path is not None:
        tree |= read_toml(path)
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            msg = f"'{word}' is not of the form section.key=value"
            raise ValueError(msg)
        given[name.strip()] = value = _value(name, text)
        _set_or_unset(tree, name.strip(), value)
    if given.get("train.steps", NONE) != NONE:
        for other in {"train.max_seconds", "train.epochs"} - set(given):
            _unset(tree, other)
    model = tree.get("model")
    if isinstance(model, dict) and model.get("kind") == OLD_KIND:
        msg = f"model.kind = '{OLD_KIND}' is '{NEW_KIND}' now, the predecessor's networks; the default is 'set'"
        raise ValueError(msg)
    return from_dict(_with_name(tree, path))


def find_preset(preset: Path | str) -> Path:
    """Return the file of a preset: a path, or a name of crmuons' own presets, which are found from anywhere.

    Raises:
        FileNotFoundError: if there is neither such a file nor such a preset.
    """
    path = Path(named(str(preset)))
    if path.is_file():
        return path
    own = PRESETS / f"{path.name.removesuffix('.toml')}.toml"
    if own.is_file() and (path.parent == Path() or path.parent.parts[-2:] == OLD_PRESETS):
        return own
    names = ", ".join(sorted(file.stem for file in PRESETS.glob("*.toml")))
    hint = "it is 'default' now" if path.stem == "baseline" else f"the presets of crmuons are {names}"
    msg = f"no preset at {preset}; {hint}, and a setting has the form section.key=value"
    raise FileNotFoundError(msg)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Return the settings of a nested dictionary.

    Raises:
        ValueError: listing every fault.
    """
    try:
        return _validated(tree)
    except RecursionError:
        msg = "the settings are nested too deeply; a setting has the form section.key=value"
        raise ValueError(msg) from None


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
    described = {}
    for path, field in _fields().items():
        default = field.get_default(call_default_factory=True)
        described[path] = ("unset" if default is None else repr(default), field.description or "")
    return described


def read_toml(preset: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        ValueError: if it is no TOML, with the place of the fault.
    """
    start = preset.read_bytes()[:2]
    # Windows' shells save UTF-16: it begins with a mark, or its first letter has a null byte.
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in start:
        msg = f"{preset} is not UTF-8 text (but UTF-16); save it as UTF-8"
        raise ValueError(msg)
    try:
        # Some editors begin a file with a byte order mark.
        return tomllib.loads(preset.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        msg = f"{preset} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        raise ValueError(msg) from error
    except (ValueError, RecursionError) as error:  # A ValueError also for a number of more than 4300 digits.
        msg = f"{preset} is not TOML: {error}"
        raise ValueError(msg) from error


def _validated(tree: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(_describe_fault(fault) for fault in error.errors())) from error


def _with_name(tree: dict[str, Any], preset: Path | None) -> dict[str, Any]:
    """Name an unnamed run by its preset and digest, so that the same settings find the same run again."""
    run = tree.get("run", {})
    if not isinstance(run, dict) or run.get("name"):
        return tree
    # A file may have a name that no run can have: spaces, umlauts, 250 letters.
    stem = re.sub(r"[^A-Za-z0-9._-]|^\.", "-", preset.stem)[:100] if preset is not None else "run"
    name = f"{stem}-{from_dict(tree).digest()}"
    return tree | {"run": run | {"name": name}}


def _value(name: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return NONE if text.strip().lower() == NONE else text  # A bare word is a string.
    except (ValueError, RecursionError) as error:  # A number of more than 4300 digits, and brackets without end.
        msg = f"{name.strip()}: the value cannot be read ({_shown(text)}): {error}"
        raise ValueError(msg) from error


def _set_or_unset(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a value; with NONE, forget the preset's value unless the setting itself takes NONE."""
    fields = _fields()
    field = fields.get(path)
    takes_none = field is not None and (can_be_unset(field) or NONE in get_args(field.annotation))
    is_known = any(known == path or known.startswith(f"{path}.") for known in fields)
    if value == NONE and is_known and not takes_none:
        _unset(tree, path)
    else:
        _set(tree, path, value)


def _unset(tree: dict[str, Any], path: str) -> None:
    if path == "train":
        tree[path] = {}  # The only section that has no default.
        return
    *sections, key = path.split(".")
    for section in sections:
        tree = tree[section] if isinstance(tree.get(section), dict) else {}
    tree.pop(key, None)


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        below = tree.get(section)
        tree[section] = below if isinstance(below, dict) else {}  # The validation reports a section that was a value.
        tree = tree[section]
    tree[key] = value


def _describe_fault(fault: Any) -> str:
    path, kind = ".".join(str(part) for part in fault["loc"]), fault["type"]
    if kind == "extra_forbidden":
        return _describe_unknown(path, fault["input"])
    value = "" if kind == "missing" or isinstance(fault["input"], dict) else f" (got {_shown(fault['input'])})"
    if kind == "model_type":
        below = [known for known in settings() if known.startswith(f"{path}.")]
        meant = next(
            (known for known in below if path.rpartition(".")[2] in OTHER_NAMES.get(known, "").split()), below[0]
        )
        return f"{path}: a section, not a setting; the nearest valid one is '{meant}'{value}"
    return f"{path or 'config'}: {fault['msg'].removeprefix('Value error, ')}{value}"


def _describe_unknown(path: str, value: Any) -> str:
    # For an unknown section, compare its first setting: it is closer to the intended path.
    if isinstance(value, dict):
        path = next((f"{path}.{below}" for below, _ in flatten(value)), path)
    if (reason := why_left_out(path)) is not None:
        return f"unknown setting '{_cut(path)}': crmuons leaves it out, because {reason}"
    known = settings()
    meant = nearest(path, known)
    if meant is None:
        return f"unknown setting '{_cut(path)}', and no setting is like it; use one that `crmuons settings` lists"
    explained = ""
    if path.rpartition(".")[2] != meant.rpartition(".")[2]:
        explained = f" ({' '.join(known[meant][1].split()).partition('. ')[0].rstrip('.')})"
    return f"unknown setting '{_cut(path)}'; the nearest valid one is '{meant}'{explained}"


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _fields(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Return the field of every setting, by dotted path."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            fields |= _fields(field.annotation, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = field
    return fields

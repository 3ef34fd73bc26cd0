"""What all groups of settings share: unknown keys are errors, numbers are finite, and `none` means no value."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from crmuons.config.options import named
from crmuons.config.schemes import check_scheme

NONE = "none"  # TOML has no null: this word is the value of a setting without one.

# Upper bounds are far above what runs use and below what exhausts a machine. So a typing error is refused, with the name
# of the setting, before it costs memory or time.
MANY = 10**12  # Steps, bytes and files.


class Section(BaseModel):
    """A group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_is_no_value(cls, values: Any) -> Any:
        """Take the word `none` as no value, in the settings that can be without one."""
        if not isinstance(values, dict):
            return values
        unset = {name for name, value in values.items() if value == NONE and can_be_unset(cls.model_fields.get(name))}
        return values | dict.fromkeys(unset)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number, because pydantic would take them as 1 and 0."""
        if isinstance(value, bool) and _is_number(cls.model_fields[info.field_name or ""]):
            msg = "expected a number"
            raise ValueError(msg)
        return value


def _is_number(field: FieldInfo) -> bool:
    kinds = {field.annotation, *get_args(field.annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


def can_be_unset(field: FieldInfo | None) -> bool:
    """Return whether a setting can be without a value."""
    return field is not None and type(None) in get_args(field.annotation)


def not_empty(path: str) -> str:
    """Refuse an empty path: it would name the working directory, and comes from a shell variable that is not set."""
    if not path.strip():
        msg = "an empty path, perhaps from a variable that is not set; give a path or a URL, or leave the setting out"
        raise ValueError(msg)
    return check_scheme(named(path))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

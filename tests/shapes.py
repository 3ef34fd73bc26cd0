"""The shapes and dtypes in annotations, checked at every call of the tests."""

import dataclasses
import functools
import inspect
from typing import get_args

import jaxtyping
from beartype import BeartypeConf, beartype

# A TypeError, which is what a value of another type would make without the check: the code may turn it into a sentence.
VIOLATIONS = BeartypeConf(violation_type=jaxtyping.TypeCheckError)


def check_shapes(modules):
    """Check what the named modules, imported later, take and return; sizes of one name agree within a call.

    It is jaxtyping's import hook with a cheaper decorator: the hook's own binds each call's arguments and looks at them twice,
    also where no array is, which took a tenth of the tests' time.
    """
    jaxtyping.jaxtyped = _hooked  # The name that the hook's decorators call.
    jaxtyping.install_import_hook(modules, "beartype.beartype")


def _hooked(*, typechecker):
    return _checked


def _checked(item):
    if inspect.isclass(item):
        if dataclasses.is_dataclass(item) and "__init__" in vars(item):
            item.__init__ = _checked(item.__init__)
        return item
    typed = beartype(item, conf=VIOLATIONS)
    if not any(map(_holds_array, item.__annotations__.values())):
        return typed

    @functools.wraps(item)
    def call(*args, **kwargs):
        with _sizes("context"):
            return typed(*args, **kwargs)

    return call


_sizes = jaxtyping.jaxtyped  # As a context: one set of sizes.


def _holds_array(annotation):
    return (inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)) or any(
        map(_holds_array, get_args(annotation))
    )

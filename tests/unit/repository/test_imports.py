"""A package imports from those below it alone, and Ray, MLflow and pelicanfs each stay in one package."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "crmuons"

# From the top to the bottom: a package, or a module beside the packages, imports only what stands below it.
LAYERS = ["cli", "commands", "unforeseen", "benchmark", "ray_backend", "training", "evaluation", "tracking", "generation", "runs", "models",
          "simulation", "data", "storage", "config", "provenance", "progress", "machine", "interrupts"]  # fmt: skip
TOP = ["__init__", "__main__", "spectrum"]  # Neither a layer: the package itself, and a name that users import.


@functools.cache
def imports_of(path):
    """Every module that a file imports at its top level or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("library", "homes"),
    [("ray", "ray_backend/*.py"), ("mlflow", "tracking/*.py"), ("pelicanfs", "storage/pelican/*.py")],
)
def test_a_library_lives_in_its_own_modules_alone(library, homes):
    users = {path for path in PACKAGE.rglob("*.py") if any(name.split(".")[0] == library for name in imports_of(path))}
    assert users
    assert users <= set(PACKAGE.glob(homes))


def test_packages_import_from_the_layers_below_alone():
    upwards = []
    for path in sorted(PACKAGE.rglob("*.py")):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if package in TOP:
            continue
        imported = {module.split(".")[1] for module in imports_of(path) if module.startswith("crmuons.")}
        upwards += [
            f"{path.relative_to(PACKAGE)} imports {name}" for name in imported & set(LAYERS[: LAYERS.index(package)])
        ]
    assert upwards == []

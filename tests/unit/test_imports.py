"""The training loop is torch and numpy alone: Ray, MLflow's server side and the tuner stay outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "crmuons"

# From the bottom to the top: a module imports only what stands before it.
LAYERS = ["schema", "config", "batch", "plan", "reader", "stream", "ragged", "features", "distributed", "multiplicity",
          "models", "model", "losses", "optimization", "trainer", "checkpoint", "generate", "runs", "loop", "worker"]  # fmt: skip


def loaded_by(module):
    script = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=PACKAGE.parent)
    return set(ran.stdout.split())


def test_a_worker_loads_no_ray_and_only_what_every_rank_needs():
    assert not loaded_by("crmuons.loop, crmuons.worker") & {"ray", "mlflow", "matplotlib", "pandas"}


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
    ("library", "homes"), [("ray", "ray_*.py"), ("mlflow", "tracking/*.py"), ("pelicanfs", "storage/pelican/*.py")]
)
def test_a_library_lives_in_its_own_modules_alone(library, homes):
    users = {path for path in PACKAGE.rglob("*.py") if any(name.split(".")[0] == library for name in imports_of(path))}
    assert users
    assert users <= set(PACKAGE.glob(homes))


def test_modules_import_from_the_layers_below_alone():
    for place, name in enumerate(LAYERS):
        ours = {module.split(".")[1] for module in imports_of(PACKAGE / f"{name}.py") if module.startswith("crmuons.")}
        assert not ours & set(LAYERS[place:]), name

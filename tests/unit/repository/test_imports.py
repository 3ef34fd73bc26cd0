"""The training loop is torch and numpy alone: Ray, MLflow's server side and the tuner stay outside."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "crmuons"

# From the top to the bottom: a package, or a module beside the packages, imports only what stands below it.
LAYERS = ["cli", "commands", "unforeseen", "benchmark", "ray_backend", "training", "evaluation", "tracking", "generation", "runs", "models",
          "simulation", "data", "storage", "config", "provenance", "progress", "allocator", "cpus", "interrupts"]  # fmt: skip
TOP = ["__init__", "__main__", "spectrum"]  # Neither a layer: the package itself, and a name that users import.


STEPS = [
    "crmuons.training.loop, crmuons.training.worker",
    "crmuons.cli, crmuons.benchmark.gpu.run, crmuons.training.driver",
    "crmuons.benchmark.step, crmuons.generation.writer",
    "crmuons.commands.train, crmuons.config; crmuons.commands.launcher_of(crmuons.config.from_dict({'scaling': {'num_workers': 0}, 'train': {'steps': 1}}))",
]


def loaded_after(steps):
    """Top-level packages in `sys.modules` after each step of imports in one new process; each list holds those before it."""
    report = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    script = "import sys\n" + "\n".join(f"import {step}\n{report}" for step in steps)
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=PACKAGE.parent)
    return [set(line.split()) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def loaded():
    # One process for all steps: torch alone takes two CPU-seconds to load.
    return dict(zip(["worker", "gpu check", "generation", "train"], loaded_after(STEPS), strict=True))


def test_a_worker_loads_no_ray_and_only_what_every_rank_needs(loaded):
    assert not loaded["worker"] & {"ray", "mlflow", "matplotlib", "pandas"}


def test_training_in_one_process_loads_no_ray(loaded):
    assert not loaded["train"] & {"ray", "mlflow"}


def test_data_on_disk_need_no_package_of_a_federation_and_no_http_client(loaded):
    # A GPU machine may have torch, numpy, pyarrow and pydantic alone.
    assert not loaded["generation"] & {"pelicanfs", "aiohttp", "ray", "mlflow"}


def test_the_check_of_a_gpu_loads_what_a_bare_machine_has(loaded):
    lacking = {"ray", "mlflow", "pelicanfs", "aiohttp", "matplotlib", "sklearn", "scipy"}
    assert not loaded["gpu check"] & lacking


def modules_of(package):
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in (PACKAGE / package).rglob("*.py")]
    return ", ".join(sorted(".".join(path.parts).removesuffix(".__init__") for path in paths))


def test_storage_and_data_load_no_torch():
    of_storage, of_both = loaded_after([modules_of("storage"), modules_of("data")])
    assert "torch" not in of_storage
    assert "torch" not in of_both


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

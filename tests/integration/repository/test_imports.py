"""What a new process loads: the training loop is torch and numpy alone; storage and data do without torch."""

import subprocess
import sys

import pytest

from tests.unit.repository.test_imports import PACKAGE

STEPS = [
    "crmuons.training.loop, crmuons.training.worker",
    (
        "torch; from crmuons import config; from crmuons.training.optimizers import build_optimizers\n"
        "for kind in ('adam', 'sgd'):\n"
        "    built = build_optimizers(config.Optimizer(kind=kind), {'critic': torch.nn.Linear(1, 1)})['critic']\n"
        "    built.step(torch.ones(2), torch.zeros(()))\n"
        "    built.load_state_dict(built.state_dict())"
    ),
    "crmuons.cli, crmuons.benchmark.gpu.run, crmuons.training.driver",
    "crmuons.benchmark.step, crmuons.generation.writer",
    "crmuons.commands.train, crmuons.config; crmuons.commands.launcher_of(crmuons.config.from_dict({'scaling': {'num_workers': 0}, 'train': {'steps': 1}}))",
]


def loaded_after(steps):
    """Return packages loaded after each step of imports in one new process; each list holds those before it.

    Top-level packages, and torch._dynamo.
    """
    report = "print(*{name.partition('.')[0] for name in sys.modules} | {'torch._dynamo'} & sys.modules.keys())"
    script = "import sys\n" + "\n".join(f"import {step}\n{report}" for step in steps)
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=PACKAGE.parent)
    return [set(line.split()) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def loaded():
    # One process for all steps: torch alone takes two CPU-seconds to load.
    return dict(zip(["worker", "updates", "gpu check", "generation", "train"], loaded_after(STEPS), strict=True))


def test_a_worker_loads_no_ray_and_only_what_every_rank_needs(loaded):
    assert not loaded["worker"] & {"ray", "mlflow", "matplotlib", "pandas"}


def test_an_update_loads_nothing_that_compiles(loaded):
    assert "torch._dynamo" not in loaded["updates"]  # 1.8 CPU-seconds in each process that trains.


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

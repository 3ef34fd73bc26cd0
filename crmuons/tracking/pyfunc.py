"""Write models for `mlflow.pyfunc.load_model`, and load models of crmuons 0.1, which name this module as their loader."""

import hashlib
import inspect
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from crmuons.data import schema
from crmuons.generation.load import load_generator
from crmuons.models import served
from crmuons.models.exported import bundles_source
from crmuons.models.served import PrimariesToBundles

with warnings.catch_warnings():
    # MLflow warns about one of its own type hints in every process that saves or loads a model.
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
    import mlflow.pyfunc

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.double, name) for name in schema.PRIMARY_FEATURES]),
    outputs=Schema(
        [
            *(ColSpec(DataType.long, name) for name in schema.ID_COLUMNS),
            ColSpec(Array(DataType.float), schema.PRIMARY_COLUMN),
            ColSpec(Array(Array(DataType.float)), schema.MUONS_COLUMN),
        ]
    ),
    params=ParamSchema([ParamSpec("seed", DataType.long, 0)]),
)


def save_logged_model(path: Path, directory: Path, primaries: Float32[np.ndarray, "primaries 4"]) -> None:
    """Write a model directory as an MLflow model that holds its code: it loads where crmuons is not installed.

    Its requirements can be installed from a package index: crmuons is not one of them, and the version of torch is without
    this machine's build (such as +cpu).

    Args:
        path: new directory.
        directory: a model directory (`saved_model.save_model`).
        primaries: a few primaries as an input example: energy (GeV), zenith (rad), mass (GeV), depth (m).
    """
    code = {"__init__.py": "", "bundles.py": bundles_source(), "served.py": inspect.getsource(served)}
    digest = hashlib.sha256("".join(code.values()).encode()).hexdigest()[:8]
    example = pd.DataFrame(primaries.astype(np.float64), columns=list(schema.PRIMARY_FEATURES))
    with tempfile.TemporaryDirectory(prefix="crmuons-") as folder:
        package = Path(folder) / f"crmuons_model_{digest}"
        package.mkdir()
        for name, source in code.items():
            (package / name).write_text(source, encoding="utf-8")
        mlflow.pyfunc.save_model(
            path=path,
            loader_module=f"{package.name}.served",
            data_path=str(directory),
            code_paths=[str(package)],
            signature=SIGNATURE,
            input_example=example,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "numpy", "torch")],
        )


def _load_pyfunc(path: str) -> PrimariesToBundles:
    """Return the model of a directory that crmuons 0.1 logged. MLflow calls this function by its name."""
    generator = load_generator(path)

    def generate(primaries: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        events = generator.generate(primaries, seed=seed)
        return events.counts, events.muons

    return PrimariesToBundles(generate)

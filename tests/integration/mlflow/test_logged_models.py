"""Models in MLflow generate there, the best of a sweep is registered, and the registry's are models like others."""

import resource

import mlflow
import numpy as np
import pandas as pd
import pytest

from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.generation.load import load_generator, model_digest
from crmuons.tracking import logged_models
from crmuons.tracking.logged_models import local_place
from crmuons.tracking.sender import sync
from tests.unit.tracking.conftest import base, client, model_dir, start  # noqa: F401 - fixtures
from tests.unit.tracking.store import NOBODY


def test_logged_model_generates_bundles_through_mlflow(start, client, model_dir, tmp_path):  # noqa: F811
    primaries = pd.DataFrame(
        {"energy_gev": [1e6, 5e6], "zenith_rad": [0.1, 0.4], "mass_gev": [0.938, 52.1], "depth_m": [1600, 2000]}
    )
    tracker = start(tmp_path / "run", uri=NOBODY)
    tracker.model(model_dir, primaries.to_numpy(np.float32))
    tracker.finish("FINISHED")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        _, run_id = sync(tmp_path / "run")
        patch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
        loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    bundles = loaded.predict(primaries.astype(float), params={"seed": 7})

    wanted = to_table(load_generator(model_dir).generate(primaries.to_numpy(np.float32), seed=7)).to_pydict()
    assert bundles.to_dict("list") == wanted
    assert loaded.metadata.signature.inputs.input_names() == list(schema.PRIMARY_FEATURES)
    assert loaded.input_example is not None
    (requirements,) = (tmp_path / "run").rglob("requirements.txt")
    names = [line.partition("==")[0] for line in requirements.read_text().split()]
    assert names == ["mlflow", "numpy", "torch"]  # Not crmuons: whoever takes that name on an index would be run.
    assert "+" not in requirements.read_text()  # No index has torch==2.13.0+cpu under this name.
    files = {path.name for path in (tmp_path / "run").rglob("*")}
    assert {"MLmodel", "weights.pt"} <= files
    assert not any(name.endswith(".pkl") for name in files)


def test_best_model_is_registered_once_its_run_is_known_and_keeps_the_alias_from_worse_ones(
    start,  # noqa: F811
    client,  # noqa: F811
    model_dir,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    example = np.ones((1, 4), np.float32)
    sweep, trials = start(tmp_path / "sweep", uri=NOBODY), {}
    for name, score in (("good", 0.1), ("worse", 0.2), ("other", 0.3)):
        trials[name] = start(tmp_path / name, uri=NOBODY, run_name=name, parent=sweep.identity)
        trials[name].model(model_dir, example)
        trials[name].finish("FINISHED")
        tags = {"validation": "other data" if name == "other" else "same data"}
        sweep.register(trials[name].identity, "bundles", score=score, tags=tags)
    sweep.finish("FINISHED")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    with pytest.raises(ConnectionError, match="which this entry refers to; send that journal first"):
        sync(tmp_path / "good")
    with pytest.raises(ConnectionError, match="which this entry refers to; send that journal first"):
        sync(tmp_path / "sweep")  # The run itself was made all the same.
    runs = {name: sync(tmp_path / name)[1] for name in ("good", "worse")}
    with pytest.raises(ConnectionError):
        sync(tmp_path / "sweep")
    assert client.get_model_version_by_alias("bundles", "best").run_id == runs["good"]
    runs["other"] = sync(tmp_path / "other")[1]
    (tmp_path / "sweep" / "tracking" / "sent.json").unlink()  # As after a kill: all is sent again.
    parent = sync(tmp_path / "sweep")[1]

    assert {client.get_run(run).data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    versions = client.search_model_versions("name = 'bundles'")
    assert sorted(version.run_id for version in versions) == sorted(runs.values())
    holder = client.get_model_version_by_alias("bundles", "best")
    assert holder.run_id == runs["other"]  # Other events: its score does not compare.
    assert (holder.tags["validation"], holder.tags["score"]) == ("other data", "0.3")


def test_a_model_of_the_registry_is_a_model_like_others(start, client, model_dir, tmp_path):  # noqa: F811
    tracker = start(tmp_path / "run", uri=NOBODY)
    tracker.model(model_dir, np.array([[1e6, 0.1, 0.938, 1600]], np.float32))
    tracker.finish("FINISHED")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        _, run_id = sync(tmp_path / "run")
        patch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
        (model,) = client.search_logged_models(
            [client.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'"
        )
        client.create_registered_model("bundles-by-name")
        version = client.create_model_version(
            "bundles-by-name", f"models:/{model.model_id}", run_id, model_id=model.model_id
        )
        client.set_registered_model_alias("bundles-by-name", "best", version.version)
        for place in (
            "models:/bundles-by-name@best",
            f"models:/bundles-by-name/{version.version}",
            f"models:/{model.model_id}",
        ):
            assert model_digest(load_generator(local_place(place))) == model_digest(load_generator(model_dir))
        patch.setattr(logged_models, "MAX_FILE_BYTES", 1000)
        with pytest.raises(ValueError, match="is no model of crmuons: it has a file of more than"):
            local_place("models:/bundles-by-name@best")
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
        with pytest.raises(FileNotFoundError, match=r"models:/bundles-by-name@worst cannot be read from .*sqlite.*: "):
            local_place("models:/bundles-by-name@worst")
        with pytest.raises(FileNotFoundError, match=r"models:/nothing@best cannot be read from .*sqlite.*: "):
            local_place("models:/nothing@best")

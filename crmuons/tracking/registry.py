"""Register the best model of a sweep in MLflow's model registry. `models:/NAME@best` is the best of all sweeps."""

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from crmuons.tracking.uri import is_server

ALIAS = "best"


def register(client: mlflow.MlflowClient, run: mlflow.entities.Run, entry: Mapping[str, Any]) -> None:
    """Register the newest model of a run. A repeated call changes nothing.

    The alias "best" moves to this model unless it points to a model with a lower or equal score on the same validation
    events (tag `validation`).

    Args:
        client: client of the server.
        run: the run that logged the model.
        entry: the journal entry that `Tracker.register` wrote.

    Raises:
        MlflowException: if the server does not have the model yet.
    """
    model, name = _model_of(client, run), entry["name"]
    tags = entry["tags"] | {"score": repr(entry["score"]), "model_id": model.model_id}
    _make_registered_model(client, name)
    known = {version.tags.get("model_id"): version for version in client.search_model_versions(f"name = '{name}'")}
    # A server looks `models:/ID` up in its own store. With a database, this process looks it up in the store of
    # MLFLOW_TRACKING_URI, which may be another store than the client's.
    source = f"models:/{model.model_id}" if is_server(client.tracking_uri) else model.artifact_location
    version = known.get(model.model_id) or client.create_model_version(
        name, source, run.info.run_id, tags, model_id=model.model_id
    )
    best_version = _best_version(client, name)
    if best_version is None or not _is_better(best_version.tags, tags):
        client.set_registered_model_alias(name, ALIAS, version.version)


def _model_of(client: mlflow.MlflowClient, run: mlflow.entities.Run) -> LoggedModel:
    models = client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run.info.run_id}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    if not models:
        msg = f"run {run.info.run_name} has no model on the server yet"
        raise MlflowException(msg)
    return models[0]


def _make_registered_model(client: mlflow.MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _best_version(client: mlflow.MlflowClient, name: str) -> ModelVersion | None:
    version = client.get_registered_model(name).aliases.get(ALIAS)
    return None if version is None else client.get_model_version(name, version)


def _is_better(tags: Mapping[str, str], new_tags: Mapping[str, str]) -> bool:
    validation = tags.get("validation")
    comparable = validation is not None and validation == new_tags.get("validation")
    return comparable and float(tags["score"]) <= float(new_tags["score"])

"""Authorize requests to the MLflow server of cluster/mlflow/serve.sh, and list the score before other metrics there.

An account that may choose the place of an experiment's artifacts could name any file that the server can read, such as
its secrets, and fetch it by HTTP. MLflow 3.17 has no setting that forbids this. This module runs in the server.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from flask import Response, request
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun

from crmuons.tracking.interface import SCORE

# Keys of MLflow's API whose value is a place, for experiments, runs, models and workspaces.
PLACES = {
    "artifact_location",
    "artifact_uri",
    "artifact_root",
    "default_artifact_root",
    "root_uri",
    "source",
    "storage_location",
}
PROXIED = ("mlflow-artifacts", "models", "runs")  # All of them lead to the server's own --artifacts-destination.


def authenticate() -> Any:
    """Return the account of a request, or the response that refuses it. MLflow calls this for every request."""
    from mlflow.server.auth import authenticate_request_basic_auth  # noqa: PLC0415  # It imports this module.

    list_score_first()
    for place in foreign_places([request.get_json(force=True, silent=True), request.values.to_dict()]):
        return Response(f"'{place}' is not a place of this server: artifacts go to mlflow-artifacts:, its default", 403)
    return authenticate_request_basic_auth()


def list_score_first() -> None:
    """Make this process list a run's score first, then its other metrics by name.

    MLflow's page to compare runs opens with the first metric that the server lists. MLflow requests no order from the
    database, and PostgreSQL returns rows in the order of their last update, so any metric could be the first.
    """
    SqlRun.latest_metrics.property.order_by = [SqlLatestMetric.key != SCORE, SqlLatestMetric.key]


def foreign_places(body: Any) -> Iterator[str]:
    """Yield the places in a request that are not the server's own artifact store."""
    if isinstance(body, list):
        for value in body:
            yield from foreign_places(value)
    elif isinstance(body, dict):
        for key, value in body.items():
            if key in PLACES and isinstance(value, str) and value and not _is_proxied(value):
                yield value
            else:
                yield from foreign_places(value)


def _is_proxied(place: str) -> bool:
    parts = urlsplit(place)
    return parts.scheme in PROXIED and (parts.scheme != "mlflow-artifacts" or not parts.netloc) and ".." not in place

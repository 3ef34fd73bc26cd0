"""No account of an MLflow server chooses a file of it, and the score is listed first."""

import pytest
from mlflow.store.tracking.dbmodels.models import SqlRun

from crmuons.tracking.mlflow_server import foreign_places, list_score_first


@pytest.mark.parametrize(
    ("body", "foreign"),
    [
        ({"name": "x", "artifact_location": "file:///home/mlflow/.mlflow-server"}, True),
        ({"name": "x", "artifact_location": "/home/mlflow/.mlflow-server"}, True),
        ({"artifactLocation": "x", "requests": [{"artifact_location": "http://evil.example"}]}, True),
        ({"artifact_location": "s3://bucket"}, True),
        ({"artifact_location": "mlflow-artifacts:/../../home"}, True),
        ({"artifact_location": "mlflow-artifacts://evil.example/x"}, True),
        ({"artifact_location": "FILE:/etc"}, True),
        ({"name": "m", "source": "file:///etc/passwd"}, True),
        ({"name": "x", "artifact_location": "mlflow-artifacts:/1"}, False),
        ({"name": "m", "source": "models:/m-1234"}, False),
        ({"name": "x", "artifact_location": ""}, False),
        ({"tags": [{"key": "source", "value": "file:///x"}]}, False),
        (None, False),
    ],
)
def test_only_the_servers_own_artifact_store_is_a_place(body, foreign):
    assert bool(list(foreign_places([body, {}]))) == foreign


def test_the_server_lists_the_score_first_in_whatever_order_its_database_has_the_metrics(client, monkeypatch):
    monkeypatch.setattr(SqlRun.latest_metrics.property, "order_by", False)  # MLflow's own.
    run_id = client.create_run(client.create_experiment("sorted")).info.run_id
    for name in ("validation/b", "train/a", "validation/score", "progress/seconds"):
        client.log_metric(run_id, name, 1.0)
    assert next(iter(client.get_run(run_id).data.metrics)) == "validation/b"
    list_score_first()
    expected = ["validation/score", "progress/seconds", "train/a", "validation/b"]
    assert list(client.get_run(run_id).data.metrics) == expected
    (found,) = client.search_runs([client.get_run(run_id).info.experiment_id])
    assert list(found.data.metrics) == expected

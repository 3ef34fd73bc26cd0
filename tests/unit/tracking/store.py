"""What a test asks an MLflow store."""

import mlflow

NOBODY = "http://127.0.0.1:9"  # The discard port: nobody listens, connections are refused at once.


def history(client: mlflow.MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def paths(client: mlflow.MlflowClient, run_id: str, folder: str) -> list[str]:
    return [info.path for info in client.list_artifacts(run_id, folder)]

"""A view of MLflow's charts that an experiment keeps: the score against the settings that users vary.

The page that compares runs chooses three parameters and one metric by itself. A shared view, which MLflow's pages read
from a tag of the experiment, may hold any chart. It is written for MLflow 3.17; a test opens it in a browser.
"""

import json

import mlflow

VIEW = "settings"
PARAMETERS = ("train.optimizer.lr", "train.optimizer.betas", "train.n_critic", "train.penalty.lambda_gp")
METRIC = "validation/score"

_TAG = f"mlflow.sharedViewState.{VIEW}"
_NOTE = "mlflow.note.content"  # MLflow shows it, as Markdown, above the runs of the experiment.
_RUNS = 100  # Largest number of runs in the chart; MLflow's own charts begin with 10.


def keep_view(client: mlflow.MlflowClient, experiment_id: str) -> None:
    """Give an experiment the view, and a description that links to it, unless it has them.

    Args:
        client: the client of the tracking server.
        experiment_id: the experiment.

    Raises:
        MlflowException: if the server refuses.
    """
    tags = client.get_experiment(experiment_id).tags
    if _TAG not in tags:
        client.set_experiment_tag(experiment_id, _TAG, json.dumps(_view()))
    if _NOTE not in tags:
        page = f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&compareRunsMode=CHART"
        client.set_experiment_tag(experiment_id, _NOTE, f"[The score against the settings of all runs]({page})")


def _view() -> dict[str, object]:
    section = {"uuid": "crmuons", "name": "Settings", "columns": 1, "display": True, "isReordered": False}
    chart = {
        "uuid": "crmuons-settings",
        "type": "PARALLEL",
        "runsCountToCompare": _RUNS,
        "metricSectionId": section["uuid"],
        "selectedParams": PARAMETERS,
        "selectedMetrics": (METRIC,),
    }
    own = {"deleted": False, "isGenerated": False}
    return {"compareRunSections": [section | own], "compareRunCharts": [chart | own], "runsHiddenMode": "SHOW_ALL"}

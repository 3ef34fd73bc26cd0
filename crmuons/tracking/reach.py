"""Whether a tracking server answers, asked before a run that would send to it."""

import mlflow
from mlflow.exceptions import MlflowException

from crmuons.tracking.server import say


def trouble(uri: str) -> str | None:
    """Why this process could not send to a tracking server now, by one small request with its credentials.

    Args:
        uri: as `resolve_uri` gives it. Databases are not asked: asking would make them.

    Returns:
        The reason in one line; None where there is no trouble, or no server.
    """
    if not uri.startswith(("http://", "https://")):
        return None
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except MlflowException as error:
        return say(error)
    return None

"""Check before a run that its tracking server answers."""

from crmuons.storage import reach
from crmuons.tracking.uri import is_server


def unreachable_reason(uri: str) -> str | None:
    """Return why this process cannot send to a tracking server, after one small request with its credentials.

    Args:
        uri: the result of `resolve_uri`. A database gets no request, because a request would create its tables; that its
            host takes a connection is enough.

    Returns:
        The reason in one line; None if the server answers, or if a file is the store.
    """
    if not is_server(uri):
        return reach.unreachable_reason(uri)
    from crmuons.tracking.server import connection_error  # noqa: PLC0415  # Importing MLflow takes 1.6 CPU-seconds.

    return connection_error(uri)

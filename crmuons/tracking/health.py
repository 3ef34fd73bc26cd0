"""Whether a tracking server answers, asked before a run that would send to it."""


def unreachable_reason(uri: str) -> str | None:
    """Why this process could not send to a tracking server now, by one small request with its credentials.

    Args:
        uri: as `resolve_uri` gives it. Databases are not asked: asking would make them.

    Returns:
        The reason in one line; None where there is no trouble, or no server.
    """
    if not uri.startswith(("http://", "https://")):
        return None
    from crmuons.tracking.server import connection_error  # noqa: PLC0415  # MLflow, 1.6 CPU-seconds: a file needs no asking.

    return connection_error(uri)

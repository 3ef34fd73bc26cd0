"""Divide journal entries into batches that one request to MLflow can hold."""

from collections.abc import Iterator, Mapping

from mlflow.entities import Metric

from crmuons.tracking.journal import Entry

MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one request


def batches(entries: Iterator[tuple[int, Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    """Yield batches of entries for one request: consecutive metrics together, any other entry alone."""
    batch: list[tuple[int, Entry]] = []
    size = 0
    for offset, entry in entries:
        # Other entries go alone, in the order of the journal: a status must not overtake the metrics before it.
        if entry["kind"] != "metrics":
            if batch:
                yield batch
            yield [(offset, entry)]
            batch, size = [], 0
            continue
        # The size counts values, like the server; an entry is never cut in two.
        if batch and size + len(entry["values"]) > MAX_METRICS:
            yield batch
            batch, size = [], 0
        batch.append((offset, entry))
        size += len(entry["values"])
    if batch:
        yield batch


def metrics_of(entry: Entry) -> list[Metric]:
    """Return the metrics of an entry, with its time and step."""
    return [Metric(key, value, entry["time_ms"], entry["step"]) for key, value in entry["values"].items()]


def parts(values: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    """Yield the pairs of a mapping in parts that one request can hold."""
    pairs = list(values.items())
    # A run has more settings than one request can hold.
    for start in range(0, len(pairs), MAX_PARAMS):
        yield pairs[start : start + MAX_PARAMS]

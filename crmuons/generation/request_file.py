"""The name of the record that a generation keeps in the directory of its events."""

from crmuons.storage.output import Output

REQUEST_FILE = "_request.json"  # pyarrow, pandas and Spark ignore names that begin with "_" in a folder.
BEFORE_0_2 = "request.json"


def find_request(out: Output) -> str | None:
    """Return the name of the record in a generated data set, also of earlier versions; None if there is none."""
    there = out.names()
    return next((name for name in (REQUEST_FILE, BEFORE_0_2) if name in there), None)

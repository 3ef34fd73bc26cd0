"""The results of a sweep: a table of its trials, and the best trial as a preset."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crmuons.storage import atomic
from tune.controller import format_value
from tune.space import Space
from tune.trials import Trial

Row = dict[str, Any]

FIRST_COLUMNS = ("trial", "state", "score", "step", "seconds")


def trial_rows(trials: Sequence[Trial], space: Space) -> list[Row]:
    """Return one row per trial, the best first: state, score of the selected model, last step, seconds, settings."""
    rows = [_row(trial, space) for trial in trials]
    return sorted(rows, key=lambda row: (row["score"] is None, row["score"], row["trial"]))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the finished trial with the lowest score; None if no trial finished with a score."""
    finished = [
        (score, trial) for trial in trials if trial.state() == "finished" and (score := trial.best_score()) is not None
    ]
    return min(finished, key=lambda pair: (pair[0], pair[1].number))[1] if finished else None


def write_table(directory: Path, rows: Sequence[Row]) -> None:
    """Write trials.csv and trials.json."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    atomic.write_text(directory / "trials.csv", text.getvalue())
    atomic.write_json(directory / "trials.json", rows)


def lines(rows: Sequence[Row], space: Space) -> list[str]:
    """Return the table as lines of text, the header first."""
    paths = [dimension.path for dimension in space.dimensions]
    heads = [*FIRST_COLUMNS, *(path.rpartition(".")[2] for path in paths)]
    cells = [[_as_text(row[key]) for key in (*FIRST_COLUMNS, *paths)] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *cells)]


def write_preset(path: Path, trial: Trial, about: str) -> None:
    """Write a trial's settings as a preset that trains the same model again.

    Data paths become absolute; the run's name and storage and its parent in MLflow are left out.

    Args:
        path: path of the TOML file.
        trial: the trial whose settings are written.
        about: one line for the comment at the top.
    """
    tree = trial.settings().model_dump(
        mode="json", exclude={"run": {"name", "storage_path", "resume"}, "tracking": {"parent"}}
    )
    for split in ("train", "validation"):
        tree["data"][split] = [url if "://" in url else str(Path(url).absolute()) for url in tree["data"][split]]
    atomic.write_text(path, f"# {about}\n{_toml(tree)}")


def _row(trial: Trial, space: Space) -> Row:
    scores = trial.scores()
    last = scores[-1] if scores else None
    values: Mapping[str, Any] = trial.values(space)
    return {
        "trial": trial.number,
        "state": trial.state(),
        "score": trial.best_score(),
        "step": 0 if last is None else last.step,
        "seconds": 0.0 if last is None else round(last.seconds, 2),
        **values,
        "reason": trial.reason(),
    }


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _as_text(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else format_value(value)


def _toml(tree: Mapping[str, Any], prefix: str = "") -> str:
    """Return settings as TOML. Unset settings are left out, because TOML has no null."""
    values = {key: value for key, value in tree.items() if not isinstance(value, Mapping) and value is not None}
    tables = {key: value for key, value in tree.items() if isinstance(value, Mapping)}
    text = f"\n[{prefix}]\n" if prefix and values else ""
    # JSON and TOML write strings, numbers, booleans and lists of these in the same way.
    text += "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return text + "".join(_toml(value, f"{prefix}.{key}" if prefix else key) for key, value in tables.items())

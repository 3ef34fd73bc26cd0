"""The results of a check as a table for a terminal, and as a paragraph for docs/performance.md."""

from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = {"longest", "all", "figures", "scores", "last", "run"}  # results.json has them.


def table(results: Mapping[str, Any]) -> str:
    """Return the figures of all parts, a line for each group of figures."""
    lines = []
    for part, found in results.items():
        lines.append(f"== {part}: {found.get('seconds', 0.0):.1f} s")
        lines += _lines({name: value for name, value in found.items() if name != "seconds"}, "")
    return "\n".join(lines)


def failures(results: Mapping[str, Any], path: str = "") -> list[str]:
    """Return what failed: errors, differences beyond their bounds, checks that are false, and waits for the device."""
    found = []
    for name, value in results.items():
        where = f"{path}/{name}" if path else name
        if isinstance(value, dict):
            found += failures(value, where)
        elif name == "error" or (name == "waits" and value != "none"):
            found.append(f"{where}: {value}")
        elif value is False:
            found.append(f"{where} is false")
    return found


def _lines(found: Mapping[str, Any], path: str) -> Iterator[str]:
    plain = {name: value for name, value in found.items() if not isinstance(value, dict | list) and name not in HIDDEN}
    if plain:
        yield f"{path or '.'}: " + ", ".join(f"{name} {_short(value)}" for name, value in plain.items())
    for name, value in found.items():
        if name in HIDDEN or name in plain:
            continue
        if isinstance(value, dict):
            yield from _lines(value, f"{path}/{name}" if path else name)
        else:
            yield from (f"    {line}" for line in value)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)[:300]


# Row of the paragraph's table: name, unit, factor, and the path in the results.
ROWS = (
    (
        "step, 48,000 x 0.36, eager",
        "M events/s",
        1e-6,
        ("step", "48,000 x 0.36, six updates on a batch", "eager, fp32", "events/s"),
    ),
    (
        "the same as a graph",
        "M events/s",
        1e-6,
        ("step", "48,000 x 0.36, six updates on a batch", "graph, fp32", "events/s"),
    ),
    (
        "the same, TF32",
        "M events/s",
        1e-6,
        ("step", "48,000 x 0.36, six updates on a batch", "graph, tf32", "events/s"),
    ),
    ("reference step", "M events/s", 1e-6, ("step", "48,000 x 0.36, six updates on a batch", "reference", "events/s")),
    (
        "step, 2,048 x 13.5, eager",
        "M events/s",
        1e-6,
        ("step", "2,048 x 13.5, default settings", "eager, fp32", "events/s"),
    ),
    ("the same as a graph", "M events/s", 1e-6, ("step", "2,048 x 13.5, default settings", "graph, fp32", "events/s")),
    (
        "step, 65,536 x 13.5, eager",
        "M events/s",
        1e-6,
        ("step", "65,536 x 13.5, default settings", "eager, fp32", "events/s"),
    ),
    ("the same as a graph", "M events/s", 1e-6, ("step", "65,536 x 13.5, default settings", "graph, fp32", "events/s")),
    ("shards to optimizer, 48,000 x 0.36, eager", "M events/s", 1e-6, ("job", "eager", "events/s")),
    ("the same as a graph", "M events/s", 1e-6, ("job", "graph", "events/s")),
    ("the same, TF32", "M events/s", 1e-6, ("job", "graph, tf32", "events/s")),
    ("shards to batches on the device, 0.36 muons", "M events/s", 1e-6, ("data", "sparse", "events/s, on the device")),
    ("the same, simulated bundles", "M events/s", 1e-6, ("data", "simulated", "events/s, on the device")),
    ("generate, on the device", "M muons/s", 1e-6, ("generate", "muons/s, on the device")),
    ("the same, TF32", "M muons/s", 1e-6, ("generate", "muons/s, on the device, tf32")),
    ("generate, events on the host", "M muons/s", 1e-6, ("generate", "muons/s, events on the host")),
    ("75 s of training: mean W1/sigma", "", 1.0, ("train", "score at the end")),
)


def paragraph(results: Mapping[str, Any]) -> str:
    """Return the main figures as Markdown."""
    machine = results.get("machine", {})
    about = f"{machine.get('gpu', 'no GPU')}, {machine.get('cpus')} CPU cores, torch {machine.get('torch')}, crmuons {machine.get('git_commit', machine.get('crmuons_version', 'of unknown version'))}"
    rows = [
        f"| {name} | {value * factor:.3g}{f' {unit}' if unit else ''} |"
        for name, unit, factor, path in ROWS
        if isinstance(value := _at(results, path), float)
    ]
    worst = [
        value["worst"] for value in results.get("parity", {}).values() if isinstance(value, dict) and "worst" in value
    ]
    parity = (
        f"\n\nLargest relative difference from a CPU in a step's losses and gradients: {max(worst):.1e}."
        if worst
        else ""
    )
    return (
        "\n".join([f"`crmuons benchmark gpu`, one run: {about}.", "", "| figure | measured |", "|---|---|", *rows])
        + parity
        + "\n"
    )


def _at(results: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        results = results.get(name) if isinstance(results, dict) else None
    return results

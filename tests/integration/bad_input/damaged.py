"""Bad inputs made of the files of runs, models and data: damaged as a whole, or another value at one of their keys."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.integration.bad_input.answers import Case, World

EACH_KEY = 2  # One in this many is changed.
# Values in place of each value of a JSON file.
JUNK: tuple[object, ...] = (
    None,
    [],
    {},
    "",
    "\x1b[2J",
    -1,
    1e308,
    float("nan"),
    2**80,
    True,
    [[]] * 3,
    {"x": 1},
    "../../x",
    10**9,
    [1e9] * 4,
)
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "garbage": lambda content: os.urandom(len(content) or 10),
    "half": lambda content: content[: len(content) // 2],
    "null": lambda content: b"null",
    "list": lambda content: b"[1]",
    "object": lambda content: b"{}",
    "text": lambda content: b'"x"',
    "deep": lambda content: b"[" * 100_000,
    "nan": lambda content: b'{"format": NaN, "step": NaN}\n',
}


def _readers(world: World) -> dict[str, list[tuple[str, ...]]]:
    """Return the commands that read each file of runs, models, prepared and generated data."""
    resume = (
        "train",
        f"{world.root}/preset.toml",
        f"data.train={world.data}",
        f"run.storage_path={world.root}",
        "train.steps=4",
    )
    resume = (*resume, "run.name=run", "run.resume=auto")
    generate = ("--spectrum", "events=10", "--out", f"{world.root}/generated")
    return {
        "run/model/model.json": [("generate", "--model", f"{world.root}/run/model", *generate[:2], "--out", world.out), ("export", f"{world.root}/run/model", "--out", world.out)],
        "run/model/weights.pt": [("generate", "--model", f"{world.root}/run/model", *generate[:2], "--out", world.out), ("export", f"{world.root}/run/model", "--out", world.out)],
        "run/config.json": [resume],
        "run/files.json": [resume],
        "run/metrics.jsonl": [resume],
        "run/features.pt": [resume],
        "run/validation.parquet": [resume],
        "run/checkpoints/best": [resume],
        "run/moved.json": [resume],
        "run/checkpoints/step-00000002/training.pt": [resume],
        "run/checkpoints/step-00000002/weights.pt": [resume],
        "run/checkpoints/step-00000002/model.json": [resume],
        "run/mlflow/sent.json": [("sync", f"{world.root}/run", "--to", "http://127.0.0.1:1")],
        "run/mlflow/journal.jsonl": [("sync", f"{world.root}/run", "--to", "http://127.0.0.1:1")],
        "generated/_request.json": [("generate", "--model", f"{world.root}/run/model", *generate)],
        "prepared/manifest.json": [("inspect", f"{world.root}/prepared"), (*resume[:2], f"data.train={world.root}/prepared", f"run.storage_path={world.out}")],
        "prepared/claim.json": [("prepare", world.data, "--out", f"{world.root}/prepared")],
        "data/0.parquet": [("inspect", world.data), ("prepare", world.data, "--out", world.out)],
    }  # fmt: skip


def files(world: World) -> Iterator[Case]:
    """Yield damaged files of runs, models, prepared and generated data, each with the commands that read them."""
    # Files that can be made again or that a finished result does not need; the answer may be a success that says so.
    spare = {"run/metrics.jsonl", "run/features.pt", "run/checkpoints/best", "run/moved.json", "prepared/claim.json"}
    for name, commands in _readers(world).items():
        if not (world.root / name).exists() and not name.endswith("moved.json"):
            continue
        for (what, change), words in itertools.product(DAMAGE.items(), commands):
            if name.endswith(("journal.jsonl", "sent.json")) and what == "nan":
                continue

            def damage(root: Path, name: str = name, change: Callable[[bytes], bytes] = change) -> None:
                path = root / name
                path.write_bytes(change(path.read_bytes() if path.exists() else b"{}"))

            passes = name in spare or "checkpoints" in name
            yield Case(f"files ({what})", words, (Path(name).name, Path(name).parent.name), damage, may_pass=passes)


def keys(world: World) -> Iterator[Case]:
    """Yield JSON files of runs, models and data in which one value is another."""
    for name, commands in _readers(world).items():
        if not name.endswith((".json", ".jsonl")) or not (world.root / name).exists():
            continue
        tree = _first_json(world.root / name)
        for number, path in enumerate(itertools.islice(_paths(tree), 0, None, EACH_KEY)):
            for given in commands:
                junk = JUNK[number % len(JUNK)]  # In turn: all of them at each key would be 10,000 cases.

                def damage(root: Path, name: str = name, path: tuple[Any, ...] = path, junk: object = junk) -> None:
                    changed = _first_json(root / name)
                    inside = changed
                    for step in path[:-1]:
                        inside = inside[step]
                    inside[path[-1]] = junk
                    (root / name).write_text(json.dumps(changed) + "\n")

                what = f"keys ({name}: {'.'.join(map(str, path))} = {str(junk)[:20]!r})"
                yield Case(what, given, (), damage, may_pass=True)


def _first_json(path: Path) -> Any:
    content = path.read_bytes()
    return json.loads(content.splitlines()[0] if path.suffix == ".jsonl" else content)


def _paths(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value of a JSON tree; of a long list, to the first."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree[:1]) if isinstance(tree, list) else ()
    for key, value in below:
        yield (*above, key)
        yield from _paths(value, (*above, key))

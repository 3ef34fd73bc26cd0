"""Run the parts of a check one after the other, each in its own process with a time limit."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from crmuons.benchmark.gpu import data, drawing, machine, parity, ranks, report, runs, steps
from crmuons.benchmark.gpu.machine import Figures, Machine, write_json

logger = logging.getLogger(__name__)

# The parts in order, each with its time limit in seconds. A current GPU needs half of that.
PARTS: dict[str, tuple[Callable[[Machine], Figures], int]] = {
    "machine": (machine.describe, 30), "parity": (parity.measure, 90), "step": (steps.measure, 100), "generate": (drawing.measure, 50),
    "data": (data.measure, 40), "job": (runs.job, 60), "train": (runs.train, 120), "ranks": (ranks.measure, 60),
    "evaluate": (runs.evaluate, 120),
}  # fmt: skip
NEED_DATA = {"data", "job", "train"}
LEAST_SECONDS = 10.0  # A part is not started with less time.
DEFAULT_LIMIT = 420.0


@dataclass
class Check:
    """A check in progress.

    Attributes:
        machine: where it runs.
        out: directory of results.json, paragraph.md and log.txt.
        limit: seconds for everything.
        results: what each part returned, or its error.
    """

    machine: Machine
    out: Path
    limit: float
    results: dict[str, Figures] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.begin)


def run(
    device: str, out: Path, *, parts: Sequence[str] = tuple(PARTS), limit: float = DEFAULT_LIMIT, tiny: bool = False
) -> dict[str, Figures]:
    """Run parts of the check, write results.json after each, and return the results.

    Args:
        device: "cuda" or "cpu".
        out: new directory for results.json, paragraph.md (for docs/performance.md) and log.txt.
        parts: names of PARTS.
        limit: seconds for all of them; a part that does not fit is ended or left out.
        tiny: run everything once on a few events, to try the check itself.

    Raises:
        FileExistsError: if the directory is not empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        msg = f"{out} is not empty; name a new directory for the check with --out"
        raise FileExistsError(msg)
    with tempfile.TemporaryDirectory(prefix="crmuons-gpu-") as folder:
        check = Check(Machine(device, tiny, Path(folder)), out, limit)
        _run_parts(check, [name for name in PARTS if name in parts])
    (out / "paragraph.md").write_text(report.paragraph(check.results), encoding="utf-8")
    return check.results


def _run_parts(check: Check, names: Sequence[str]) -> None:
    background = (
        [_start(check, data.make, name) for name in (data.SPARSE, data.DENSE)] if NEED_DATA & set(names) else []
    )
    evaluation: ForkServerProcess | None = None
    try:
        for name in names:
            seconds = min(PARTS[name][1], check.left)
            if name == "evaluate":  # It needs only the CPU, so it starts after `train` and runs during the later parts.
                continue
            if seconds < LEAST_SECONDS:
                _finish(check, name, {"error": "no time was left for it"})
                continue
            begin = time.monotonic()
            _end(process := _start(check, _part, name), seconds)
            _collect(check, name, process, time.monotonic() - begin)
            if name == "train" and "evaluate" in names and "error" not in check.results["train"]:
                evaluation = _start(check, _part, "evaluate")
        if evaluation is not None:
            begin = time.monotonic()
            _end(evaluation, max(1.0, min(PARTS["evaluate"][1], check.left)))
            _collect(check, "evaluate", evaluation, time.monotonic() - begin)
    finally:
        for process in [*background, *([evaluation] if evaluation else [])]:
            _end(process, 0)


def _start(check: Check, target: Callable[..., None], name: str) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crmuons.benchmark.gpu.run"])  # Torch is imported once; CUDA starts in each part.
    process = context.Process(target=in_own_session, args=(check.out / "log.txt", target, check.machine, name))
    process.start()
    return process


def in_own_session(log: Path, target: Callable[..., None], given: Machine, name: str) -> None:
    """Run a function of a part in its own session, so that it can be ended with all its processes; log its output."""
    os.setsid()
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # A training would take a GPU if it saw one.
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    target(given, name)


def _part(machine: Machine, name: str) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logger.info("===== %s", name)
    try:
        result = PARTS[name][0](machine)
    except ImportError as error:
        result = {"left out": str(error)}  # A part names the package that it needs.
    except Exception as error:  # noqa: BLE001 - the table shows it, and the other parts continue
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:1000]}
    partial = machine.folder / f"{name}.partial"
    write_json(partial, result)
    partial.replace(machine.folder / f"{name}.json")


def _end(process: ForkServerProcess, seconds: float) -> None:
    """Wait some seconds for a process to end, then end it and what it has started."""
    process.join(seconds)
    if process.is_alive() and process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _collect(check: Check, name: str, process: ForkServerProcess, seconds: float) -> None:
    path = check.machine.folder / f"{name}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    elif process.exitcode == -signal.SIGKILL:
        found = {"error": f"it was ended after {seconds:.0f} s; see log.txt"}
    else:
        found = {"error": f"it ended with exit code {process.exitcode}; see log.txt"}
    _finish(check, name, {"seconds": seconds} | found)


def _finish(check: Check, name: str, found: Figures) -> None:
    check.results[name] = found
    write_json(check.out / "results.json", check.results)
    logger.info("%s: %s (%.0f s)", name, found.get("error", found.get("left out", "done")), found.get("seconds", 0.0))

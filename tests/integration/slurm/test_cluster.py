"""The Slurm recipe on a real Slurm: a run on two nodes that is preempted, queues again, goes on and finishes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from tests.integration.conftest import Bench, wait_for
from tests.integration.slurm.slurm import Slurm, missing, slurm

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=f"needs Slurm: {missing()}"),
]


@pytest.fixture(scope="module")
def queue(bench: Bench) -> Iterator[Slurm]:
    folder = bench.folder / "slurm"
    with slurm(folder, bench.environment) as running:
        yield running


def submit(queue: Slurm, bench: Bench, *words: str) -> tuple[str, Path]:
    """Submit the recipe as its first line says, from a checkout; gives the job's number and its output."""
    log = queue.folder / "job.log"
    options = ("--parsable", "--cpus-per-task=2", f"--output={log}")
    run = (f"data.train={bench.folder}/data", f"run.storage_path={bench.folder}/runs")
    command = ("train", str(bench.folder / "small.toml"), "run.resume=auto", *run, *words)
    number = queue.command("sbatch", *options, "cluster/slurm/job.sbatch", *command, cwd=ROOT)
    return number, log


def test_a_preempted_run_queues_again_and_finishes_from_its_checkpoint(queue: Slurm, bench: Bench) -> None:
    run = Run(bench.run("slurm"))
    # 1.5 of a node's 2 CPUs: the workers cannot but be on both nodes.
    workers = ("scaling.num_workers=2", "scaling.cpus_per_worker=1.5")
    number, log = submit(queue, bench, "run.name=slurm", "train.steps=60", "run.checkpoint_every=100000", *workers)
    wait_for(lambda: run.latest_metrics().get("step", 0) > 0, within=400)
    queue.command("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: queue.job(number)["Restarts"] == "1")
    saved = max(checkpoint.steps(run.checkpoints))
    assert saved < 60  # No checkpoint was due: this one was saved at the signal.

    wait_for(lambda: queue.job(number)["JobState"] in {"COMPLETED", "FAILED", "CANCELLED"}, within=400)
    said = log.read_text()
    assert queue.job(number)["JobState"] == "COMPLETED", said
    assert "finished after 60 steps" in said
    steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert steps == sorted(steps)
    assert saved in steps
    wait_for(lambda: not queue.processes(), within=120)
    assert not list(Path("/tmp").glob(f"ray-{number}-*"))

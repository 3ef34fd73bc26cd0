"""Generation as Ray tasks, one per shard. The cluster's nodes share the output directory; primaries and model are sent to them."""

import itertools

import ray
from ray.exceptions import RayTaskError

from crmuons.generation import writer
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.primaries import PrimarySource
from crmuons.generation.writer import GenerationJob, OutputShard, WriteCounts
from crmuons.progress import progress
from crmuons.ray_backend import cluster

GPU_SHARE = 0.125  # Of a task: one CPU writes less than a GPU makes.
TASKS_AHEAD_PER_CPU = 2  # Enough to keep every CPU busy; each holds a shard's primaries, 10 MB at most.


def generate(generator: BundleGenerator, source: PrimarySource, work: GenerationJob) -> WriteCounts:
    """Make the same files as `crmuons.shards.generate`, on a cluster.

    Raises:
        OSError: if a shard cannot be written, or is not seen here once it is: the directory is then not a shared one.
    """
    total = sum(work.done.values(), WriteCounts())
    with (
        cluster.cluster(),
        progress(work.request.num_events, unit="events", what="generate", initial=total.events) as bar,
    ):
        options = {"num_gpus": GPU_SHARE} if work.request.device == "cuda" else {}
        cpus = ray.cluster_resources().get("CPU", 1)
        ahead = TASKS_AHEAD_PER_CPU * max(1, int(cpus))
        model = ray.put(generator)
        waiting = (
            _write.options(**options).remote(work, model, shard) for shard in writer.pending_shards(source, work)
        )
        running = list(itertools.islice(waiting, ahead))
        while running:
            done, running = ray.wait(running)
            for tally in _results(done):
                total += tally
                bar.set_postfix_str(f"{total.muons:,} muons", refresh=False)
                bar.update(tally.events)
            running.extend(itertools.islice(waiting, len(done)))
    _check_shared(work)
    work.out.remove_partials()
    return total


@ray.remote
def _write(work: GenerationJob, generator: BundleGenerator, shard: OutputShard) -> WriteCounts:
    writer.set_up_process()
    return writer.write_shard(work.out, work.request, generator.to(work.request.device), shard)


def _results(done: list["ray.ObjectRef[WriteCounts]"]) -> list[WriteCounts]:
    try:
        return ray.get(done)
    except RayTaskError as error:
        raise error.cause from error  # The error itself, without the worker's traceback in its message.


def _check_shared(work: GenerationJob) -> None:
    there = set(work.out.names())
    for number in range(work.request.num_shards):
        name = work.request.shard(number)
        if name not in there:
            msg = f"{work.out.of(name)} was written on another node and is not seen here; name a shared directory or a URL with --out"
            raise OSError(msg)

"""Generate in Ray tasks, one per shard. The nodes share the output directory. The tasks receive model and primaries."""

from functools import partial

from crmuons.generation import writer
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.primaries import PrimarySource
from crmuons.generation.writer import GenerationJob, OutputShard, WriteCounts
from crmuons.progress import progress
from crmuons.ray_backend import cluster
from crmuons.ray_backend.tasks import map_unordered

GPU_SHARE = 0.125  # GPUs of a task: one GPU generates faster than one CPU writes.


def generate(generator: BundleGenerator, source: PrimarySource, work: GenerationJob) -> WriteCounts:
    """Write the same files as `crmuons.generation.writer.generate`, on a cluster; return the counts of all shards.

    A task that waits holds the primaries of its shard: 10 MB at most.

    Raises:
        OSError: if a shard cannot be written, or if this process does not see a shard that a task has written, because
            the nodes do not share the output directory.
    """
    total = sum(work.done.values(), WriteCounts())
    options = {"name": "write_shard", "num_gpus": GPU_SHARE if work.request.device == "cuda" else 0}
    with (
        cluster.cluster(),
        progress(work.request.num_events, unit="events", what="generate", initial=total.events) as bar,
    ):
        for counts in map_unordered(
            partial(_write, work, generator), writer.pending_shards(source, work), options=options
        ):
            total += counts
            bar.set_postfix_str(f"{total.muons:,} muons", refresh=False)
            bar.update(counts.events)
    _check_shared(work)
    return total


def _write(work: GenerationJob, generator: BundleGenerator, shard: OutputShard) -> WriteCounts:
    writer.set_up_process()
    return writer.write_output_shard(work.out, work.request, generator.to(work.request.device), shard)


def _check_shared(work: GenerationJob) -> None:
    names = set(work.out.names())
    for number in range(work.request.num_shards):
        name = work.request.shard(number)
        if name not in names:
            msg = (
                f"a task wrote {work.out.of(name)} on another node, and this node does not see it; "
                "name a directory that all nodes share, or a URL, with --out"
            )
            raise OSError(msg)

"""The tasks of `crmuons prepare` on a cluster, by Ray Data. All nodes share the directory that they write to."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import ray
from ray.data import DataContext, Datasource
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayTaskError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(do: Callable[[Task], Result], jobs: Sequence[Task]) -> Iterator[Result]:
    """Do jobs in tasks, one a CPU, and give the results as they come.

    Raises:
        Whatever a job raises.
    """
    dataset = ray.data.read_datasource(_Jobs(do, jobs), override_num_blocks=len(jobs))
    dataset.context.enable_progress_bars = False
    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(pickle.loads, block["result"].to_pylist())
    except RayTaskError as error:
        raise error.cause from error  # The error itself, without the worker's traceback in its message.


class _Jobs(Datasource):
    """A Ray Data source whose read tasks do the jobs; each gives a row with the pickled result."""

    def __init__(self, do: Callable[[Task], Result], jobs: Sequence[Task]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.do, self.jobs = do, jobs

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task a job, whatever parallelism is proposed."""
        del parallelism, per_task_row_limit, data_context
        metadata = BlockMetadata(num_rows=1, size_bytes=1024, exec_stats=None, input_files=None)
        return [ReadTask(_task(self.do, job), metadata) for job in self.jobs]

    def estimate_inmemory_data_size(self) -> int | None:
        """A note for each job."""
        return 1024 * len(self.jobs)


def _task(do: Callable[[Task], Result], job: Task) -> Callable[[], list[Block]]:
    return lambda: [pa.table({"result": [pickle.dumps(do(job))]})]

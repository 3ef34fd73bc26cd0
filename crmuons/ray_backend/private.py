"""Every private interface of Ray that crmuons uses. A new Ray may change any of them without notice.

tests/integration/ray/test_private.py has a test of each, so that after an upgrade of Ray only this file needs work.
Ray Data and Ray Train are imported where they are used: Ray Data reads its environment when it is imported, which
must come after `cluster.set_environment`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray._common import network_utils
from ray._private import parameter, ray_constants
from ray._private.worker import global_worker
from ray._raylet import Config  # type: ignore[attr-defined]  # a compiled module
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from ray.data import Dataset

# Ray raises a bare Exception when a node does not start in time. Only its text distinguishes it from other errors.
STARTUP_TIMEOUT_TEXT = "timed out during startup"

# Ray Train's record of the checkpoints of a run, in the run's directory.
CHECKPOINT_RECORD = "checkpoint_manager_snapshot.json"

# Ray Train appends a paragraph of guesses to the message of a lost worker. The facts come before it.
GUESSES_TEXT = " Some common causes include"


LOOPBACK = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR


def reload_settings() -> None:
    """Have Ray's core read RAY_* from the environment again.

    Ray reads them once, when it is imported; `cluster.set_environment` runs later and turns the token on. Ray has no
    public function for it.
    """
    Config.initialize("")


def listen_on_loopback() -> None:
    """Have a cluster that this process starts, or connects to on loopback, use 127.0.0.1 as the address of its node.

    All its servers then listen on loopback. Ray does so on macOS and Windows; on Linux, this variable asks for it. Ray
    itself reads it when it is imported, and its processes inherit it.
    """
    os.environ[LOOPBACK] = "0"
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # The workers exchange gradients there.
    ray_constants.ENABLE_RAY_CLUSTER = False


@contextmanager
def few_processes() -> Iterator[None]:
    """Have `ray.init` start a node without two processes that a cluster of one machine and one command has no use for.

    One brings the workers' output to drivers that show it, the other asks a cloud for nodes. Each loads for 0.8 CPU-seconds
    while the node has 30 s to start, and the first looks at all logs ten times a second. `ray.init` has an option for neither.
    """
    original = parameter.RayParams
    # Ray annotates the second as a string, and takes it for what it is.
    parameter.RayParams = partial(original, no_monitor=True, include_log_monitor=False)  # type: ignore[assignment,misc,arg-type]
    try:
        yield
    finally:
        parameter.RayParams = original  # type: ignore[misc]


def session_directory() -> Path:
    """Return the directory in which the node of this process keeps its logs, sockets and the code of jobs."""
    assert global_worker.node is not None, "ray.init was called"
    return Path(global_worker.node.get_session_dir_path())


def network_address() -> str:
    """Return the address of this machine on the network, as Ray finds it."""
    address = network_utils.node_ip_address_from_perspective()  # type: ignore[attr-defined]  # not in its __all__
    return str(address)


def call_each_round(dataset: "Dataset", function: Callable[[], object]) -> None:
    """Have Ray Data call a function after each round of the scheduler that executes a data set.

    No public option slows this scheduler down, and its thread competes with the training step (`SchedulerThrottle`).

    Args:
        dataset: will be executed with the callback.
        function: Ray pickles it for its tasks, too.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback  # noqa: PLC0415  # see the module

    class EachRound(ExecutionCallback):
        def on_execution_step(self, executor: object) -> None:
            del executor
            function()

    dataset.context.custom_execution_callback_classes.append(EachRound)


def node_or_any_free(node: str) -> NodeAffinitySchedulingStrategy:
    """Return a strategy that puts a task on a node, or on another one while that node has no free CPU.

    Without the private option, a task waits for its node as long as the node is alive.
    """
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def is_lost(error: BaseException) -> bool:
    """Return whether an error that Ray Train collected means that its worker no longer answers.

    Workers that fail because they cannot reach a lost one have errors of other kinds. The class of the error is
    internal to Ray Train; the attribute names it without an import.
    """
    return hasattr(error, "health_check_failure")


def forget_checkpoints(run: Path) -> None:
    """Remove Ray Train's record of the checkpoints of a run.

    An earlier command wrote it, and crmuons has pruned some of these checkpoints since: Ray Train would refuse to start.
    """
    (run / CHECKPOINT_RECORD).unlink(missing_ok=True)


def start_fewer_processes(trainer: Any, *, job_outlives_run: bool) -> None:
    """Keep Ray Train from starting two processes that a training does not need; each costs 3 to 4 CPU-seconds.

    The first process distributes data sets at each start of the workers, but crmuons' workers read by themselves. The
    second one frees the workers' CPUs if their controller dies, but Ray does so anyway when a job ends. The second one
    asks the State API once a second. Without a dashboard, it would send the token to any program that listens at port
    8265, and end the training if that program rejects the token.

    Args:
        trainer: a TorchTrainer without data sets, before its `fit`.
        job_outlives_run: whether this process stays connected to Ray after the training, and needs the second process.
    """
    # Imported late: see the module.
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback  # noqa: PLC0415
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback  # noqa: PLC0415

    create = trainer._create_default_callbacks

    def create_fewer() -> list[Any]:
        unused = () if job_outlives_run else PlacementGroupCleanerCallback
        callbacks = [callback for callback in create() if not isinstance(callback, unused)]
        for callback in callbacks:
            # It stays, since it also gives the workers this process's settings of Ray Data.
            if isinstance(callback, DatasetsCallback):
                callback.before_init_train_context = _no_data_sets  # type: ignore[method-assign]  # on this object only
        return callbacks

    trainer._create_default_callbacks = create_fewer


def _no_data_sets(workers: object) -> dict[str, Any]:
    del workers
    return {}


def without_guesses(error: BaseException) -> str:
    """Return the message of an error without Ray's guesses about its cause."""
    return str(error).strip().partition(GUESSES_TEXT)[0]


def startup_timed_out(error: BaseException) -> bool:
    """Return whether `ray.init` failed because a node did not start in time."""
    return STARTUP_TIMEOUT_TEXT in str(error)

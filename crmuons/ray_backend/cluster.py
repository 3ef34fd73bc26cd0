"""Connecting to Ray: the environment Ray needs, set here and nowhere else, and a cluster of our own where none is given."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from crmuons.ray_backend import private

logger = logging.getLogger(__name__)

# Read by Ray when it is first used, and inherited by every process that it starts.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # One report per interval is all that a worker gets through; default 2.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "2",  # The default, 32 actors per epoch, costs 3 CPU-seconds each time.
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "-1",  # A slow training step counts as "no progress": 1800 s kills a run.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Leave CUDA_VISIBLE_DEVICES alone in workers without a GPU.
    "RAY_DEDUP_LOGS": "0",
}

# Of the nodes of a cluster of our own. cluster/environment.sh has what given clusters need of this.
OWN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # Nobody preempts it: a process that costs 2 CPU-seconds at the start.
    # A process that rests between two reads is kept: Ray ends it after 1 s, and the next read would start another.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}

MAX_STARTS = 3


def set_environment() -> None:
    """Set what Ray reads from the environment, leaving what the user has set.

    A cluster of our own asks for a token, kept in a file only its owner reads; towards a given cluster
    (RAY_ADDRESS) the token is used where there is one.
    """
    own_cluster = "RAY_ADDRESS" not in os.environ
    for name, value in (ENVIRONMENT | (OWN_ENVIRONMENT if own_cluster else {})).items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" in os.environ:
        return
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    token = Path.home() / ".ray" / "auth_token"
    if own_cluster and not given:
        _keep_private_token(token)
    if own_cluster or given or token.exists():
        os.environ["RAY_AUTH_MODE"] = "token"
        private.reload_settings()


@contextmanager
def cluster(*, num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray: to RAY_ADDRESS, to a connection that exists, or to a cluster started here and stopped after.

    Args:
        num_cpus: CPUs of a cluster started here; None for the machine's.
    """
    if ray.is_initialized():
        yield
        return
    set_environment()
    # Ray's own talk is left out; what a run has to say is in its metrics and its errors.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    else:
        _start(
            num_cpus=num_cpus,
            include_dashboard=True,  # Tune needs its State API to free what a stopped trial held.
            dashboard_host="127.0.0.1",
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _start(**options: Any) -> None:
    """Start a cluster on this machine, where Ray gives a node up that needs more than 30 s: again, up to three times.

    Raises:
        TimeoutError: if none came up.
    """
    others = set(psutil.Process().children(recursive=True))
    for _ in range(MAX_STARTS):
        try:
            # Without "local" Ray would join a cluster that anybody started on this machine, or the address of a dead one.
            ray.init("local", **options)
        except Exception as error:  # Ray has no class for it.
            if not private.startup_timed_out(error):
                raise
            for process in set(psutil.Process().children(recursive=True)) - others:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        else:
            return
    msg = f"Ray did not start on this machine in {MAX_STARTS} times half a minute; try again when less else runs on it"
    raise TimeoutError(msg)


def _keep_private_token(token: Path) -> None:
    """Make the token before Ray does: Ray's own is readable by everybody (mode 0644)."""
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))

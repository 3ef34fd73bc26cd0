"""Connect to the Ray cluster at RAY_ADDRESS or start a local one, and set the environment that Ray reads."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from crmuons import provenance
from crmuons.machine import Cpus, available_cpus
from crmuons.ray_backend import private, temporary

logger = logging.getLogger(__name__)

# Ray reads these when it is first used; every process that it starts inherits them.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # A worker can send one report per interval; default 2.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "2",  # The default of 32 actors costs 3 CPU-seconds per epoch.
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "-1",  # A slow training step counts as no progress; default 1800.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Leave CUDA_VISIBLE_DEVICES alone in workers without a GPU.
    "RAY_DEDUP_LOGS": "0",
}

# Variables for the nodes of a local cluster. cluster/environment.sh sets the second one for the nodes of other
# clusters.
LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # Nobody preempts its nodes, and the watcher's process costs 2 CPU-seconds.
    # Keep processes that wait for the next read: after Ray's default of 1 s, that read would start a new process.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}

MAX_STARTS = 3
CONNECT_S = 10.0  # Enough for a head node that is alive but busy, over a slow network.


def set_environment() -> None:
    """Set the environment variables that Ray reads, except those that the user has set.

    Without RAY_ADDRESS, a local cluster will be started: it listens on loopback and requires a token, in a file that only
    its owner can read. For the cluster at RAY_ADDRESS, the token is used if one exists.
    """
    provenance.complete_environment()
    # Ray decides in the same way: with an address it joins a cluster, without one it starts a cluster.
    starts_local = "RAY_ADDRESS" not in os.environ
    if starts_local or _is_on_loopback_alone(os.environ["RAY_ADDRESS"]):
        private.listen_on_loopback()
    # setdefault: what the user has set stays.
    for name, value in (ENVIRONMENT | (LOCAL_ENVIRONMENT if starts_local else {})).items():
        os.environ.setdefault(name, value)
    # The user has chosen the mode, perhaps a mode without a token.
    if "RAY_AUTH_MODE" in os.environ:
        return
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    token = Path("~/.ray/auth_token").expanduser()
    if starts_local and not has_token:
        try:
            _keep_private_token(token)
        except OSError as error:  # In a container, the user's home often does not exist or cannot be written.
            logger.info("the cluster's token is kept only in memory, because %s", error)
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if starts_local or has_token or token.exists():
        os.environ["RAY_AUTH_MODE"] = "token"
        private.reload_settings()


@contextmanager
def cluster(*, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """Keep this process connected to Ray for the duration of the block.

    An existing connection is used as it is. Otherwise connect to RAY_ADDRESS, or start a cluster and stop it afterwards.

    Args:
        num_cpus: CPUs of a cluster that is started here; None for all that this process may use.
        dashboard: whether a cluster that is started here has Ray's dashboard, State API and job API, for 5 CPU-seconds.
    """
    # A sweep or a test is connected already, and closes the connection itself.
    if ray.is_initialized():
        yield
        return
    set_environment()
    # Ray's own log lines are off, because metrics and errors report on a run.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" in os.environ:
        # This fails within CONNECT_S seconds. Ray would try for minutes without a message.
        check_head(os.environ["RAY_ADDRESS"])
        ray.init(**quiet)
        _warn_of_others(private.session_directory())
    else:
        cpus = available_cpus() if num_cpus is None else Cpus(num_cpus, "as asked")
        logger.info("starting a Ray cluster on this machine, CPUs: %d (%s)", cpus.number, cpus.reason)
        directory = temporary.private_directory()
        temporary.shorten_tmpdir(directory)
        _start(
            num_cpus=cpus.number,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _temp_dir=str(directory / "ray"),
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


def check_head(address: str) -> None:
    """Check that something listens at the address of a cluster, because Ray itself would try for 7 minutes.

    Args:
        address: RAY_ADDRESS. HOST:PORT and ray://HOST:PORT are checked. Ray itself finds the cluster for other forms.

    Raises:
        ConnectionError: if nothing listens there.
        ValueError: if the address has another form.
    """
    if address in {"auto", "local", ""}:
        return
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if "://" in address.removeprefix("ray://") or not host or not port.isdecimal() or int(port) >= 2**16:
        msg = f"RAY_ADDRESS = '{address}' is not HOST:PORT of a cluster's head node; unset it to start a cluster here"
        raise ValueError(msg)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        msg = (
            f"nothing answers at RAY_ADDRESS = {address} ({error.strerror or error}); start the cluster, or unset "
            "RAY_ADDRESS to start one on this machine"
        )
        raise ConnectionError(msg) from error


def _start(**options: Any) -> None:
    """Start a cluster on this machine. Ray gives up after 30 s: try up to MAX_STARTS times.

    Raises:
        TimeoutError: if no cluster started.
    """
    # Only the processes of a failed start may be killed, not other children of this process.
    earlier = set(psutil.Process().children(recursive=True))
    for _ in range(MAX_STARTS):
        try:
            # Without "local", Ray would join any cluster on this machine, or try the address of one that has ended.
            with private.few_processes():
                ray.init("local", **options)
        except Exception as error:  # Ray has no class for this error.
            if not private.startup_timed_out(error):
                raise
            for process in set(psutil.Process().children(recursive=True)) - earlier:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        else:
            return
    msg = f"Ray did not start on this machine in {MAX_STARTS} attempts of 30 s; try again when the machine is less busy"
    raise TimeoutError(msg)


def _is_on_loopback_alone(address: str) -> bool:
    """Return whether a cluster listens on loopback and not on the network, as cluster/local/start.sh starts it."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        return False
    return _listens("127.0.0.1", int(port)) and not _listens(private.network_address(), int(port))


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _warn_of_others(session: Path) -> None:
    """Log that other users can run code in a cluster. In a pod of Kubernetes there are no others."""
    if temporary.is_open_to_others(session) and "KUBERNETES_SERVICE_HOST" not in os.environ:
        logger.warning(
            "every user of this machine can change the cluster's files in %s, and so run code as you; start the cluster "
            "with cluster/local/start.sh, or give `ray start` a --temp-dir below a directory of mode 700",
            session,
        )


def _keep_private_token(token: Path) -> None:
    """Create the token's file before Ray does, because everybody could read Ray's file (mode 0644)."""
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))

"""Real commands in processes of their own: a private home, a short folder for Ray's sockets, small data, tiny networks."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.integration.ports import free_ports
from tests.toy import toy_events, write_toy  # noqa: F401 - fixtures

PRESET = """
[model]
width = 16
multiplicity_width = 16
[train]
events_per_worker = 64
validation_events = 300
muons_per_event = 16
log_every = 2
validate_every = 40
[run]
checkpoint_every = 10
[data]
validation_share = 0.1
prefetch_batches = 2
read_tasks = 1
[scaling]
num_workers = 0
[tracking]
enabled = false
"""
TRACKED = "tracking.enabled=true"  # For the tests that look: it costs some 9 CPU-seconds a process.

# Of `ray start`, whose own choice meets those of other clusters on the machine: other tests', say.
RAY_PORTS = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")

# What Ray's nodes read where a test starts them: its workers have the lowest priority but for 4 otherwise, and would hardly run
# beside other work on the machine; the other is cluster/environment.sh's.
OF_NODES = {"RAY_worker_niceness": "0", "RAY_idle_worker_killing_time_threshold_ms": "600000"}


# 100 to 300 s each, and busy; begun last, one would run while nothing else is left.
BUSIEST = (
    "ray/test_training",
    "ray/test_jobs",
    "ray/test_cluster_elastic",
    "ray/test_sweep",
    "mlflow/test_postgres",
    "slurm/test_cluster",
)
# They wait for servers with faults most of the time: the longest is the last.
WAITING = (
    "http/test_http",
    "pelican/test_tokens",
    "pelican/test_writing",
    "pelican/test_staging",
    "pelican/test_federation",
    "mlflow/test_server",
    "security/test_scenarios_servers",
    "pelican/test_training",
    "http/test_faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The busiest modules come first, those that wait last."""
    here, order = Path(__file__).parent, (*BUSIEST, "others", *WAITING)

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(here).with_suffix("").as_posix()
        return order.index(name if name in order else "others")

    items.sort(key=place)


class FromBothEnds(LoadFileScheduling):
    """Give the last worker modules from the end: it waits while the other one keeps both cores busy."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        if node is self.nodes[-1]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)  # Without xdist there is no such hook.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FromBothEnds:
    """Have the modules run in that order."""
    return FromBothEnds(config, log)


def local_cluster_words() -> tuple[str, tuple[str, ...]]:
    """Return the port of the dashboard, and options for cluster/local/start.sh, on free ports."""
    port, dashboard, client = map(str, free_ports(3))
    words = ("--port", port, "--dashboard-port", dashboard, "--ray-client-server-port", client, "--num-cpus=1")
    return dashboard, (*words, *RAY_PORTS)


@dataclass
class Bench:
    """A place to run commands as a user does: `crmuons` in a folder that holds `data/` and `small.toml`."""

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """A command in a process group of its own, as a terminal's; its output goes to one pipe."""
        process = subprocess.Popen(
            command,
            cwd=cwd or self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def crmuons(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start `crmuons WORDS`."""
        return self.start(sys.executable, "-m", "crmuons.cli", *words, **environment)

    def train(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start `crmuons train small.toml data.train=data WORDS`."""
        return self.crmuons("train", "small.toml", "data.train=data", *words, **environment)

    def run(self, name: str) -> Path:
        """A run's directory."""
        return self.folder / "runs" / name

    def ray_directory(self, name: str) -> str:
        """A new directory for `ray start --temp-dir`; Ray lets every user write there, so it is no parent of others."""
        return tempfile.mkdtemp(prefix=name[:1], dir=self.environment["RAY_TMPDIR"])

    def clean_up(self) -> None:
        """End what a failed test left running, of the processes started here."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for process in self.ray_processes():
            process.kill()
        for process in self.started:
            process.stdout.close()

    def ray_processes(self) -> list[psutil.Process]:
        """Ray's processes of this bench: they carry its folder for sockets in their environment."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("RAY_TMPDIR") == self.environment["RAY_TMPDIR"]
        except psutil.Error:
            return False


def output(process: subprocess.Popen[str], code: int, *, within: float = 400) -> str:
    """What a command said, once it ended with the code that is due and without a traceback."""
    said, _ = process.communicate(timeout=within)
    assert process.returncode == code, said
    assert "Traceback" not in said, said
    return said


def wait_for(happened: Callable[[], object], *, within: float = 400, by: "subprocess.Popen[str] | None" = None) -> None:
    """Wait until something is the case, which a command does that is still running; otherwise tell what it said."""
    deadline = time.monotonic() + within
    while not happened():
        if time.monotonic() > deadline or (by is not None and by.poll() is not None):
            pytest.fail(f"waited in vain{'' if by is None else f': {_said(by)}'}")
        time.sleep(0.25)  # What is looked at costs milliseconds too, which what is waited for needs.


def _said(process: subprocess.Popen[str]) -> str:
    """What a command said, which is ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGABRT)  # A Python that has faulthandler tells where it is.
    with suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=10)[0]
    process.kill()
    return process.communicate()[0]


def takes_jobs(address: str, token: Path) -> bool:
    """Whether a cluster takes a job, which it can last of all. `ray job submit` would spend seconds on each answer."""
    if not token.is_file():
        return False
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token.read_text()}"}
    try:
        asked = urllib.request.Request(f"{address}/api/jobs/", b'{"entrypoint": "true"}', headers)
        with urllib.request.urlopen(asked, timeout=60):
            return True
    except OSError:
        return False


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Let commands hear Ctrl-C: what a shell starts in the background, the tests too, ignores it, and so would they."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def ray_here() -> Iterator[None]:
    """Ray in this process, where a test uses it: a home and a folder of its own, and nobody's cluster.

    Without a token, for all modules alike: Ray reads that once a process.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        for name, value in {**OF_NODES, "HOME": folder, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module", autouse=True)
def environment_as_before(ray_here: None) -> Iterator[None]:
    """Leave no module the variables of an earlier one: crmuons, Ray and `mlflow.set_tracking_uri` set some in this process."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def cluster(environment_as_before: None) -> Iterator[dict[str, str]]:
    """A cluster of two CPUs for all tests of a module: each start costs 10 to 20 CPU-seconds.

    Used in this process, or by commands with the environment that it yields.
    """
    import ray
    from ray._private import ray_constants

    from crmuons.ray_backend.cluster import _start, set_environment

    # Which set_environment sets: other clusters than this one are not on loopback.
    on_network = ray_constants.ENABLE_RAY_CLUSTER
    set_environment()
    (nobody,) = free_ports(1)  # A group of workers asks the State API at the dashboard's port, 8265 otherwise.
    # Ray gives up a start of 30 s on a busy machine; this one is begun again, without warnings of the first one's processes.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        _start(num_cpus=2, include_dashboard=False, dashboard_port=nobody, log_to_driver=False)
        gc.collect()
    yield {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "disabled"}
    ray.shutdown()
    ray_constants.ENABLE_RAY_CLUSTER = on_network


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "home").mkdir()
    (folder / "small.toml").write_text(PRESET)
    sockets = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # the paths of Ray's sockets must be short
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MLFLOW_", "RAY_", "GLOO_"))
    }
    mine = {
        "HOME": str(folder / "home"),
        "RAY_TMPDIR": sockets,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        **OF_NODES,
    }
    root = str(Path(__file__).parents[2])
    bench = Bench(folder, kept | mine | {"PYTHONPATH": root, "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"})
    words = ("--events", "4000", "--energy-range", "1e5", "1e7")
    assert "4000 events" in output(bench.crmuons("simulate", *words, "--out", "data", "--seed", "1"), 0)
    yield bench
    bench.clean_up()
    shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="session")
def small_disk() -> Callable[[Path, str], AbstractContextManager[None]]:
    """Mounts a disk of a size such as "3m" at a new folder, for the time of a block; skips where that is not allowed."""

    @contextmanager
    def mounted(folder: Path, size: str) -> Iterator[None]:
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(words, check=False, capture_output=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    return mounted

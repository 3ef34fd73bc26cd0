"""The private interfaces of Ray do what crmuons needs: each test fails if a new Ray changes one of them."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
import ray._private.node
import ray.data
import ray.tune
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.tune.schedulers import FIFOScheduler

from crmuons.ray_backend import cluster as ray_cluster
from crmuons.ray_backend import private
from tests.integration.conftest import wait_for
from tune import ray_tune

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own, where it copies its context.
]
ROUNDS = []
RAY = Path(ray.__file__).parent


def test_rays_core_reads_its_environment_again() -> None:
    script = (
        "import os; from crmuons.ray_backend import private; from ray._raylet import Config; "
        "os.environ['RAY_health_check_period_ms'] = '4321'; private.reload_settings(); "
        "print(Config.health_check_period_ms())"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=os.environ)
    assert ran.stdout.strip() == "4321"


def test_a_cluster_of_this_process_has_no_process_that_it_has_no_use_for(cluster: None) -> None:
    processes = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("gcs_server" in words for words in processes)
    assert not [words for words in processes if "monitor.py" in words]  # Also log_monitor.py.


def count_round() -> None:
    ROUNDS.append(1)


def test_the_scheduler_of_ray_data_calls_a_function_each_round(cluster: None) -> None:
    dataset = ray.data.range(100, override_num_blocks=4)
    private.call_each_round(dataset, count_round)
    assert len(list(dataset.iter_rows())) == 100
    assert ROUNDS


def test_a_task_prefers_a_node_and_takes_another_one_if_that_is_full(cluster: None) -> None:
    node = ray.get_runtime_context().get_node_id()
    strategy = private.node_or_any_free(node)
    assert (strategy.soft, strategy._spill_on_unavailable) == (True, True)
    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    assert ray.get(where.options(scheduling_strategy=strategy).remote()) == node


def test_only_the_error_of_a_lost_worker_is_taken_for_one() -> None:
    lost = WorkerHealthCheckFailedError("rank 1", failure=RuntimeError("actor died"))
    assert private.is_lost(lost)
    assert not private.is_lost(RuntimeError("connection closed by peer"))


@pytest.mark.parametrize("job_outlives_run", [False, True])
def test_ray_train_starts_no_process_that_a_training_has_no_use_for(cluster: None, job_outlives_run: bool) -> None:
    trainer = TorchTrainer(print)
    usual = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    private.start_fewer_processes(trainer, job_outlives_run=job_outlives_run)
    left = {type(callback).__name__: callback for callback in trainer._create_default_callbacks()}
    assert usual - set(left) == (set() if job_outlives_run else {"PlacementGroupCleanerCallback"})
    assert left["DatasetsCallback"].before_init_train_context([]) == {}


KILLED = """
import os, signal, ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=0)
class Controller:
    def reserve(self):
        self.group = ray.util.placement_group([{"CPU": 1}] * 2)
        ray.get(self.group.ready())
controller = Controller.remote()
ray.get(controller.reserve.remote())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ray_frees_the_cpus_of_a_job_whose_driver_is_killed(cluster: dict[str, str]) -> None:
    ran = subprocess.run([sys.executable, "-c", KILLED], check=False, capture_output=True, env=os.environ | cluster)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    groups = ray.util.placement_group_table()
    assert groups
    wait_for(lambda: {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}, within=120)


def test_rays_record_of_checkpoints_is_removed(tmp_path: Path) -> None:
    assert constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME == private.CHECKPOINT_RECORD
    (tmp_path / private.CHECKPOINT_RECORD).touch()
    private.forget_checkpoints(tmp_path)
    private.forget_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_rays_messages_hold_the_texts_that_are_looked_for() -> None:
    assert private.STARTUP_TIMEOUT_TEXT in inspect.getsource(ray._private.node)
    raylet = (RAY / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()
    assert private.GUESSES_TEXT.encode() in raylet
    assert private.without_guesses(RuntimeError("it died. Some common causes include: (1) memory")) == "it died."


def test_ray_still_reads_every_variable_that_crmuons_sets() -> None:
    names = ray_cluster.ENVIRONMENT | ray_cluster.LOCAL_ENVIRONMENT | ray_tune.ENVIRONMENT
    unknown = {name for name in names if not name.startswith("RAY_idle")}  # That one belongs to the compiled core.
    for package in ("_common", "_private", "train", "data", "tune"):
        for path in (RAY / package).rglob("*.py"):
            text = path.read_text()
            unknown -= {name for name in unknown if name in text}
    assert unknown == set()
    assert b"idle_worker_killing_time_threshold_ms" in (RAY / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()


def test_tune_prints_nothing_with_the_quiet_reporter(cluster: None, tmp_path: Path, monkeypatch, capsys) -> None:
    for name, value in ray_tune.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    tuner = ray.tune.Tuner(
        lambda config: ray.tune.report({"score": 1.0}),
        tune_config=ray.tune.TuneConfig(scheduler=FIFOScheduler(), num_samples=2),
        run_config=ray.tune.RunConfig(
            name="trials", storage_path=str(tmp_path), verbose=0, callbacks=[ray_tune.QuietReporter()]
        ),
    )
    tuner.fit()
    assert capsys.readouterr().out.strip() == ""

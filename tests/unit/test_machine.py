"""The number of CPUs is the smallest of all limits, and says which; threads are the user's number at most."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from crmuons import config
from crmuons import machine as limits
from crmuons.machine import Cpus, available_cpus, cgroup_quota, num_threads
from crmuons.training.worker import set_up_torch

FREE = ("_CONDOR_SLOT", "RAY_RAYLET_PID", "RAY_JOB_CONFIG_JSON_ENV_VAR")


@pytest.fixture
def machine(monkeypatch):
    """A node of 64 CPUs that this process may use whole."""
    for name in (*limits.GIVEN, limits.THREADS, *FREE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(limits, "cgroup_quota", lambda: None)
    return monkeypatch


def test_a_whole_machine_is_used(machine):
    assert available_cpus() == Cpus(64, "all CPUs of the machine")
    assert num_threads(4) == Cpus(16, "all CPUs of the machine")
    assert num_threads(100).number == 1


def test_each_limit_holds(machine):
    machine.setenv("SLURM_CPUS_ON_NODE", "32")
    assert available_cpus() == Cpus(32, "SLURM_CPUS_ON_NODE=32")
    machine.setenv("SLURM_CPUS_PER_TASK", "16")
    assert available_cpus() == Cpus(16, "SLURM_CPUS_PER_TASK=16")
    machine.setattr(limits, "cgroup_quota", lambda: 8.5)
    assert available_cpus() == Cpus(8, "the control group's quota of 8.5 CPUs")
    machine.setattr(os, "sched_getaffinity", lambda _: {3})
    assert available_cpus() == Cpus(1, "the CPU affinity of this process")
    machine.setattr(limits, "cgroup_quota", lambda: 0.2)
    assert available_cpus().number == 1


def test_the_users_threads_limit_a_process_and_not_the_cpus_of_a_cluster(machine):
    machine.setenv("OMP_NUM_THREADS", "4")
    assert num_threads() == Cpus(4, "OMP_NUM_THREADS=4")
    assert num_threads(32) == Cpus(2, "all CPUs of the machine")
    assert available_cpus().number == 64
    machine.setenv("_CONDOR_SLOT", "slot1_1")  # HTCondor sets the variable to the slot's CPUs.
    assert available_cpus() == Cpus(4, "OMP_NUM_THREADS=4")


@pytest.mark.parametrize(
    ("value", "number"), [("", 64), ("0", 64), ("4,2", 4), ("many", 64), ("-3", 64), ("9" * 400, 64)]
)
def test_only_a_number_limits(machine, value, number):
    machine.setenv("OMP_NUM_THREADS", value)
    assert num_threads().number == number
    machine.delenv("OMP_NUM_THREADS")
    machine.setenv("SLURM_CPUS_PER_TASK", value)
    assert available_cpus().number == number


def test_what_ray_sets_in_its_workers_is_not_the_users(machine, tmp_path):
    """/proc holds the environment that a process was started with: Ray sets the variable afterwards."""
    machine.setattr(limits, "PROC", tmp_path)
    for name in ("self", "77"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environ").write_bytes(b"PATH=/bin\0HOME=/root\0")
    machine.setenv("OMP_NUM_THREADS", "1")
    assert num_threads().number == 1
    machine.setenv("RAY_RAYLET_PID", "77")
    assert num_threads().number == 64
    (tmp_path / "self" / "environ").write_bytes(b"PATH=/bin\0OMP_NUM_THREADS=1\0")  # The user's runtime environment.
    assert num_threads().number == 1
    machine.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {}}')  # A job's command inherits Ray's 1.
    assert num_threads().number == 64
    machine.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}')
    assert num_threads().number == 1
    machine.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    (tmp_path / "77" / "environ").write_bytes(b"OMP_NUM_THREADS=1\0")  # The user's, when the cluster was started.
    assert num_threads().number == 1
    machine.setenv("RAY_RAYLET_PID", "78")  # Gone, or in another container.
    assert num_threads().number == 64


def test_quotas_of_both_versions_and_of_the_folders_above_are_read(tmp_path):
    own = tmp_path / "own"
    (tmp_path / "cpu" / "job").mkdir(parents=True)
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    own.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n")
    assert cgroup_quota(tmp_path, own) == 1.5
    (tmp_path / "pod" / "task").mkdir(parents=True)
    (tmp_path / "pod" / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "pod" / "task" / "cpu.max").write_text("max 100000\n")
    own.write_text("0::/pod/task\n")
    assert cgroup_quota(tmp_path, own) == 2.0
    own.write_text("0::/elsewhere\n")
    assert cgroup_quota(tmp_path, own) is None
    (tmp_path / "cpu.max").write_text("garbage\n")
    assert cgroup_quota(tmp_path, own) is None
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None


def test_no_other_module_counts_the_cpus_of_the_machine():
    code = Path(limits.__file__).parent
    counting = [
        path.relative_to(code).as_posix() for path in code.rglob("*.py") if "cpu_count()" in path.read_text("utf-8")
    ]
    # The two others describe the machine in their results.
    assert sorted(counting) == [
        "benchmark/amplification/run.py",
        "benchmark/command.py",
        "benchmark/gpu/machine.py",
        "machine.py",
    ]


def test_torch_and_arrow_take_the_same_number(machine):
    before = torch.get_num_threads(), pa.cpu_count()
    machine.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    settings = config.load(None, ["train.steps=1", "scaling.num_workers=0"])
    try:
        set_up_torch(settings)
        assert (torch.get_num_threads(), pa.cpu_count()) == (4, 4)
        set_up_torch(config.changed(settings, {"scaling.num_workers": 8}), workers_on_node=2)  # On four nodes.
        assert (torch.get_num_threads(), pa.cpu_count()) == (2, 2)
        set_up_torch(config.changed(settings, {"scaling.threads_per_worker": 3}))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before[0])
        pa.set_cpu_count(before[1])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to allow one of them")
def test_a_process_of_one_cpu_has_one_thread():
    one = min(os.sched_getaffinity(0))
    script = "from crmuons.data import arrow; import pyarrow, crmuons.machine as c; print(c.available_cpus().number, pyarrow.cpu_count())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ran = subprocess.run(
        ["taskset", "-c", str(one), sys.executable, "-c", script], env=environment, cwd=Path(__file__).parents[2],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout.split() == ["1", "1"]

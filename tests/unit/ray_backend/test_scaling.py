"""The backend of the exchange fits the workers' devices."""

import pytest
import ray

from crmuons import config
from crmuons.ray_backend import scaling


def test_nccl_is_refused_for_workers_without_gpus(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ValueError, match=r"scaling.backend = nccl exchanges between GPUs, .* use auto or gloo"):
        scaling.scaling_config(config.Scaling(backend="nccl"))


def test_auto_leaves_the_backend_to_the_device_and_a_name_is_passed_on():
    assert [scaling.backend(config.Scaling(backend=name)) for name in ("auto", "gloo", "nccl")] == [
        None,
        "gloo",
        "nccl",
    ]

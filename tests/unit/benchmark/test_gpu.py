"""The check of a GPU: what it compares, what it finds, and what it shows. The integration test runs it whole."""

import json

import pytest
import torch

from crmuons.benchmark.gpu import drawing, parity, report, run, steps
from crmuons.benchmark.gpu.machine import Machine


@pytest.fixture
def tiny(tmp_path):
    return Machine("cpu", tiny=True, folder=tmp_path)


def test_both_devices_draw_the_same_noise_also_for_a_larger_batch():
    sources = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    with parity.SameNoise():
        one, other = (torch.randn(5, 4, generator=source) for source in sources)
        padded = torch.randn(8, 4)
        shares = torch.rand(3), torch.rand((3,), generator=sources[0])
    assert torch.equal(one, other)
    assert torch.equal(padded[:5], one)
    assert torch.equal(*shares)
    assert not torch.equal(torch.randn(5, 4, generator=sources[0]), one)


def test_parity_sees_a_device_that_computes_something_else(tiny, monkeypatch):
    found = parity._compare(tiny, {"penalty": {"kind": "one_centred"}}, False)
    assert found["worst"] < 1e-6
    assert found["within bound"]
    assert {"critic gradient", "generator gradient", "gradient_penalty", "multiplicity_loss"} <= set(found["all"])
    make = Machine.trainer

    def trainer(self, *arguments, **how):
        made = make(self, *arguments, **how)
        if how.get("on") is None:  # That of the device.
            with torch.no_grad():
                next(made.critic.parameters()).mul_(1.2)
        return made

    monkeypatch.setattr(Machine, "trainer", trainer)
    assert not parity._compare(tiny, {}, False)["within bound"]


def test_a_number_that_is_missing_on_one_side_is_a_difference():
    assert parity._difference(float("nan"), float("nan")) == 0
    assert parity._difference(1.0, float("nan")) == float("inf")
    assert parity._difference(2.0, 2.2) == pytest.approx(0.1)


def test_a_check_that_fails_costs_no_other():
    def broken():
        msg = "no such kernel"
        raise RuntimeError(msg)

    assert parity.attempt(broken) == {"error": "RuntimeError: no such kernel"}


def test_a_nan_and_a_resumed_step_are_checked(tiny):
    found = parity._stops_at_nan(tiny, False)
    assert "NaN or infinite" in found["said"]
    assert found["weights stand still"]
    assert parity._resumed(tiny, False) is True


def test_the_step_and_the_generation_are_timed(tiny, monkeypatch):
    monkeypatch.setattr(steps, "SHAPES", {"small": (64, 2.0, {}, True)})
    step = steps.measure(tiny)["small"]
    assert step["eager, fp32"]["events/s"] == pytest.approx(step["events"] / step["eager, fp32"]["ms"] * 1e3)
    assert step["eager, fp32"]["profile"]["kernels"] > 100
    assert step["reference"]["events/s"] > 0
    drawn = drawing.measure(tiny)
    assert all(value > 0 for name, value in drawn.items() if "/s" in name)
    assert drawn["profile of a million muons"]["kernels"] > 10


def test_the_table_and_the_paragraph_show_the_figures():
    results = {
        "machine": {"seconds": 1.0, "gpu": "NVIDIA H200", "cpus": 16, "torch": "2.11", "git_commit": "abc"},
        "parity": {"default": {"worst": 1.8e-6, "waits": "none"}, "NaN": {"error": "boom"}},
        "step": {"48,000 x 0.36, six updates on a batch": {"eager, fp32": {"events/s": 886_578.0, "profile": {"longest": [["k", 1, 2.0]]}}}},
        "generate": {"muons/s, on the device": 155e6},
        "job": {"error": "no time was left for it"},
    }  # fmt: skip
    table = report.table(json.loads(json.dumps(results)))
    assert "48,000 x 0.36, six updates on a batch/eager, fp32: events/s 886,578" in table
    assert "NaN: error boom" in table
    assert "error no time was left for it" in table
    assert "longest" not in table
    paragraph = report.paragraph(results)
    assert "| step, 48,000 x 0.36, eager | 0.887 M events/s |" in paragraph
    assert "| generate, on the device | 155 M muons/s |" in paragraph
    assert "NVIDIA H200, 16 CPU cores, torch 2.11, crmuons abc" in paragraph
    assert "1.8e-06" in paragraph


def test_what_fails_is_told_by_its_place():
    results = {
        "parity": {"default": {"within bound": True, "waits": "none"}, "tf32": {"within bound": False, "waits": "File x"}, "resumed": False},
        "job": {"error": "no time was left for it"}, "evaluate": {"left out": "No module named 'sklearn'"},
    }  # fmt: skip
    assert report.failures(results) == [
        "parity/tf32/within bound is false", "parity/tf32/waits: File x", "parity/resumed is false", "job/error: no time was left for it",
    ]  # fmt: skip


def test_a_full_directory_is_refused(tmp_path):
    (tmp_path / "kept").touch()
    with pytest.raises(FileExistsError, match="is not empty; name a new directory for the check with --out"):
        run.run("cpu", tmp_path)

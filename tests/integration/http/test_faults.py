"""Two hundred faulty answers of a web server: the rows are exact, or one sentence says what is wrong. Also in a training."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fsspec.asyn import sync

from crmuons.data import reader
from crmuons.data.sampler import cut_files
from crmuons.data.selection import Selection
from crmuons.simulation.simulate import SimulationSettings, simulate
from crmuons.storage import files
from crmuons.storage.http import site, sources
from tests.integration.http.faulty_web import FAULTS, serving

TRANSIENT = [fault for fault in FAULTS if fault != "redirect to a file"]
PRESET = str(Path(__file__).parents[3] / "jobs" / "configs" / "default.toml")
SMALL = (
    "train.steps=30", "train.events_per_worker=256", "train.validation_events=200", "train.log_every=10", "run.checkpoint_every=10",
    "scaling.num_workers=0", "scaling.threads_per_worker=1", "run.resume=auto", "tracking.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four simulated files by their paths on the server."""
    folder = tmp_path_factory.mktemp("sim")
    for seed in range(4):
        simulate(SimulationSettings(), num_events=2000, out=folder / str(seed), seed=seed)
    return {f"/data/{path.parent.name}.parquet": path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.fixture
def impatient(monkeypatch):
    for name in ("START_S", "PATIENCE_S"):
        monkeypatch.setenv(f"CRMUONS_HTTP_{name}", "1")
    monkeypatch.setenv("CRMUONS_HTTP_READ_S", "0.2")
    monkeypatch.setattr(sources, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sources, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(site, "_instances", {})
    yield
    for made in site._instances.values():
        sync(made.loop, made.web._session.close)


def read(url):
    parts = [reader.read_slice(part, Selection("all"))[0] for part in cut_files(files.list_files(url))]
    return [np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "primaries", "counts", "muons")]


@pytest.mark.usefixtures("impatient")
def test_two_hundred_faulty_answers_give_the_exact_rows_or_one_sentence(data, tmp_path):
    for name, content in data.items():
        (tmp_path / name.rpartition("/")[2]).write_bytes(content)
    right = read(str(tmp_path))
    # Once, at the listing or while reading; every second or third time; for ever.
    patterns = {
        "first": lambda n: n == 1, "later": lambda n: n == 9, "every second": lambda n: n % 2 == 1,
        "two of three": lambda n: n % 3 > 0, "from the sixth on": lambda n: n >= 6,
    }  # fmt: skip
    cases = [(fault, when) for when in patterns for fault in FAULTS]

    def outcome(case: tuple[str, str]) -> str:
        fault, when = case
        answers = iter(range(10**9))
        with serving(data, fault=lambda _: fault if patterns[when](next(answers)) else None) as web:
            try:
                rows = read(f"{web.url}/data")
            except (OSError, ValueError) as error:
                said = str(error)
                return f"{when}: {'one sentence' if '127.0.0.1' in said and chr(10) not in said else said}"
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(rows, right, strict=True)), case
        return f"{when}: exact rows"

    with ThreadPoolExecutor(8) as threads:  # Each waits most of the time.
        outcomes = Counter(threads.map(outcome, cases))
    print(len(cases), "cases:", json.dumps(outcomes, indent=1))
    assert len(cases) >= 200
    assert {outcome.partition(": ")[2] for outcome in outcomes} == {"exact rows", "one sentence"}


def train(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    waits = {"CRMUONS_HTTP_READ_S": "1", "CRMUONS_HTTP_PATIENCE_S": "60", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "crmuons.cli", "train", PRESET, *SMALL, *words],
        cwd=folder, env={**os.environ, **waits, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_training_through_faulty_answers_is_the_training_without_them(data, tmp_path):
    """A quarter of all answers with data is wrong, each in a way drawn at random."""
    draw = random.Random(1)
    wrong = Counter()

    def often(request):
        if request.range == "bytes=0-0" or draw.random() > 0.25:
            return None
        fault = draw.choice(TRANSIENT)
        wrong[fault] += 1
        return fault

    losses = []
    for name, fault in (("good", lambda _: None), ("bad", often)):
        with serving(data, fault=fault) as web:
            web_url = web.url
            done = train(
                tmp_path,
                f"data.train={web_url}/data",
                "data.shuffle_bytes=200000",
                f"run.storage_path={tmp_path}/runs",
                f"run.name={name}",
            )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("train/critic_loss") for line in lines])
    print(sum(wrong.values()), "wrong answers:", dict(wrong))
    assert sum(wrong.values()) >= 5
    assert any(value is not None for value in losses[0])
    assert losses[0] == losses[1]

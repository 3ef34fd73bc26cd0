"""What two workers wait for reaches the screen of the driver: slow data, and a worker that hangs."""

import signal
import threading
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Bench, output, wait_for
from tests.integration.http.faulty_web import serving

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def said(run: Path, words: str) -> bool:
    return any(words in path.read_text() for path in run.glob("notices-*.txt"))


def workers(bench: Bench) -> list[psutil.Process]:
    return [each for each in bench.ray_processes() if "RayTrainWorker" in " ".join(each.cmdline())]


def test_the_screen_says_what_a_worker_waits_for_and_since_when(bench: Bench) -> None:
    run = bench.run("waits")
    goes_on = threading.Event()
    goes_on.set()

    def hold(_request: object) -> None:
        goes_on.wait(120)

    files = {f"/data/{path.name}": path.read_bytes() for path in (bench.folder / "data").glob("*.parquet")}
    with serving(files, fault=hold) as site:
        process = bench.crmuons(
            "train", "small.toml", f"data.train={site.url}/data/", "train.steps=1000000", "train.log_every=2", "scaling.num_workers=2",
            "run.name=waits", "tracking.enabled=false", CRMUONS_HTTP_READ_S="200",
        )  # fmt: skip
        wait_for(
            lambda: (run / "metrics.jsonl").is_file() and '"step": 4' in (run / "metrics.jsonl").read_text(), by=process
        )
        goes_on.clear()
        wait_for(lambda: said(run, "no data since"), by=process)
        goes_on.set()
        wait_for(lambda: said(run, "data have come after"), by=process)
        stopped = workers(bench)[-1]
        stopped.suspend()
        wait_for(lambda: said(run, "waiting for the other workers since"), by=process)
        stopped.resume()
        process.send_signal(signal.SIGINT)
        screen = output(process, 130)
    for words in ("no data since", "data have come after", "waiting for the other workers since"):
        assert any(line.startswith("worker ") and words in line for line in screen.splitlines()), screen

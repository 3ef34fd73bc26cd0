"""What Prometheus would read while a run goes on."""

import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from crmuons import ray_metrics
from tests.integration.conftest import Bench, output, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def scraped(listed: Path) -> str:
    """The metrics of every address in Ray's list that answers without a token, one sample a line."""
    if not listed.is_file():
        return ""
    (entry,) = json.loads(listed.read_text())
    pages = []
    for target in entry["targets"]:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                pages.append(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):  # Not up yet, or asks for the token.
            continue
    return "\n".join(pages)


def test_a_run_on_ray_shows_its_metrics_to_prometheus(bench: Bench) -> None:
    run = bench.train("run.name=watched", "train.max_seconds=200", "train.validate_every=10", "scaling.num_workers=1")
    listed = Path(bench.environment["RAY_TMPDIR"]) / "ray" / "prom_metrics_service_discovery.json"
    seen: dict[str, float] = {}

    def all_are_shown() -> bool:
        for name, value in re.findall(r'^ray_(\w+)\{[^}]*\brun="watched"[^}]*\} (\S+)$', scraped(listed), re.MULTILINE):
            seen[name] = float(value)
        return seen.keys() >= {ray_metrics.gauge_name(metric) for metric in ray_metrics.SHOWN}

    wait_for(all_are_shown, within=400)
    run.send_signal(signal.SIGINT)
    output(run, 130)
    assert seen["crmuons_speed_events_per_second"] > 0
    assert 0 <= seen["crmuons_speed_data_wait_share"] <= 1

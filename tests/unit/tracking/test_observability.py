"""What Prometheus scrapes and Grafana draws is what the runs export."""

import json
import re
from pathlib import Path

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from crmuons.ray_backend import metrics

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster" / "observability"
EXPORTED = {f"ray_{metrics.gauge_name(metric)}" for metric in metrics.SHOWN}


def drawn() -> set[str]:
    """Every metric that the dashboard asks for, in panels and in the choice of runs."""
    return set(re.findall(r"\bray_\w+", (FOLDER / "grafana.json").read_text()))


def test_the_dashboard_draws_the_exported_metrics_and_no_other() -> None:
    assert drawn() == EXPORTED


def test_the_dashboard_has_a_place_and_a_source_for_each_panel() -> None:
    board = json.loads((FOLDER / "grafana.json").read_text())
    panels = board["panels"]
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
        assert all(re.fullmatch(r'ray_crmuons_\w+\{run=~"\$run"\}', target["expr"]) for target in panel["targets"])
    assert {variable["name"] for variable in board["templating"]["list"]} == {"source", "run"}


def test_prometheus_reads_the_list_of_nodes_that_ray_writes() -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


@pytest.mark.parametrize("metric", metrics.SHOWN)
def test_every_exported_metric_is_one_that_runs_report_and_the_docs_define(metric: str) -> None:
    assert f"`{metric}`" in (ROOT / "docs" / "metrics.md").read_text()

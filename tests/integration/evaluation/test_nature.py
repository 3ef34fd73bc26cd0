"""`crmuons validate` on simulated events, with its report and figures."""

import json
import re

from crmuons import cli
from tests.unit.evaluation.nature.conftest import simulated  # noqa: F401 - a fixture


def test_the_command_reads_how_simulated_primaries_were_drawn(simulated, tmp_path, capsys):  # noqa: F811
    assert cli.main(["validate", str(simulated), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"vertical intensity.* 1 km w.e. .*daemonflux through water +agrees", out)
    content = json.loads((tmp_path / "out/validation.json").read_text())
    assert content["about"]["energies_of_the_primaries"] == "400 to 1e+08 GeV"
    assert content["about"]["spectrum"] == "E^-1.8"
    assert content["warnings"] == []
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<figure>") == 5
    for row in content["rows"]:
        assert row["verdict"] in page
    assert (tmp_path / "out/figures/depth_intensity.png").stat().st_size > 10_000

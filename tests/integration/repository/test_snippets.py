"""Every Python snippet of the documentation runs as it stands, in the directory that the text around it is about."""

import re
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from crmuons import cli, config
from crmuons.generation.export import export
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)
IS_PYTHON = re.compile(r"^(?:import|from) \w|^\w+ = \w+[.(]", re.MULTILINE)


def snippets(text):
    """Yield the Python in fences, and the indented blocks that import or call something."""
    yield from (code for language, code in FENCED.findall(text) if language in ("py", "python"))
    for block in INDENTED.findall(FENCED.sub("", text)):
        code = textwrap.dedent(block)
        if IS_PYTHON.search(code):
            yield code


SNIPPETS = [
    pytest.param(snippet, id=f"{page.name}-{number}")
    for page in PAGES
    for number, snippet in enumerate(snippets(page.read_text(encoding="utf-8")), 1)
]


@pytest.fixture(scope="module")
def results(tmp_path_factory, toy_events):
    """A directory in which a model was exported, and its muon bundles were generated from a spectrum into `out`."""
    pytest.importorskip("onnxscript", reason="the export to ONNX needs crmuons[onnx]")
    folder = tmp_path_factory.mktemp("snippets")
    torch.manual_seed(0)
    settings = config.Model(width=8, multiplicity_width=8)
    model = BundleModel(settings, Features().fit(toy_events()))
    saved = saved_model.save_model(folder / "model", model, {"model": settings.model_dump()})
    exported = folder / "exported"
    export(str(saved), str(exported), onnx=True)
    words = ["--spectrum", "events=50", "--out", str(exported / "out"), "--device", "cpu", "--format", "icecube"]
    fill = ["--fill", "dir_x=0", "dir_y=0", "t_ns=0", "charge=-1"]
    assert cli.main(["generate", "--model", str(saved), *words, *fill]) == 0
    for name in ("NAME", "first"):  # As the pages call their runs.
        shutil.copytree(saved, exported / "runs" / name)
    return exported


def test_the_documentation_has_snippets():
    assert len(SNIPPETS) >= 9


@pytest.mark.parametrize("snippet", SNIPPETS)
@pytest.mark.filterwarnings("ignore")  # Of the libraries that a user's script imports.
def test_a_snippet_runs_as_it_stands(snippet, results, monkeypatch):
    if "from icecube" in snippet:
        pytest.importorskip("icecube", reason="IceTray comes with IceCube's software alone")
    if "cuda" in snippet and not torch.cuda.is_available():
        snippet = snippet.replace('"cuda"', '"cpu"')
    monkeypatch.chdir(results)
    monkeypatch.syspath_prepend(str(results))
    names = {}
    exec(compile(snippet, "snippet", "exec"), names)
    sys.modules.pop("bundles", None)
    numbers = [value for value in names.values() if isinstance(value, np.ndarray)]
    assert numbers or "crmuons" in snippet
    assert all(np.isfinite(value).all() for value in numbers)

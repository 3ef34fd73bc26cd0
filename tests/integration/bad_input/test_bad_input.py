"""Every bad input of the table is refused in a few lines that name it, in time; none is taken, none ends in a traceback."""

import importlib
import os
from collections import Counter

import pytest

from crmuons import cli
from tests.integration.bad_input.answers import World, ask
from tests.integration.bad_input.cases import TABLES
from tests.toy import make_events, write_file


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Toy data, a run of two checkpoints, prepared data and generated events."""
    world = World(tmp_path_factory.mktemp("world"))
    for number in range(2):
        write_file(world.root / "data" / f"{number}.parquet", make_events(100, seed=number))
    (world.root / "preset.toml").write_text(
        "[train]\nsteps = 2\nevents_per_worker = 32\nvalidate_every = 1\nlog_every = 1\n[run]\ncheckpoint_every = 1\n"
        "keep_checkpoints = 3\n[model]\nwidth = 4\nmultiplicity_width = 4\n[scaling]\nnum_workers = 0\n"
        "threads_per_worker = 1\n[tracking]\nenabled = false\n[data]\nvalidation_share = 0.4\ntest_share = 0\n"
    )
    words = [f"data.train={world.data}", f"run.storage_path={world.root}", "run.name=run"]
    assert cli.main(["train", f"{world.root}/preset.toml", *words]) == 0
    assert cli.main(["prepare", world.data, "--out", f"{world.root}/prepared"]) == 0
    model = f"{world.run}/model"
    assert cli.main(["generate", "--model", model, "--spectrum", "events=10", "--out", f"{world.root}/generated"]) == 0
    # The modules of commands are imported here: on a busy machine that alone takes seconds, which count as the answer's.
    importlib.import_module("mlflow")
    importlib.import_module("crmuons.ray_backend.train")
    given = [
        "--truth",
        world.data,
        "--split",
        "all",
        "--generated",
        world.data,
        "--events",
        "1",
        "--out",
        f"{world.root}/e",
    ]
    cli.main(["evaluate", *given])
    os.mkfifo(world.fifo)
    (world.root / "text").write_text("no data\n")
    (world.root / "empty").mkdir()
    return world


@pytest.mark.parametrize("kind", TABLES)
def test_bad_input_is_refused(kind, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = list(TABLES[kind](world))
    faults, longest = [], 0.0
    for case in table:
        answer = ask(case, world, tmp_path / "copy")
        longest = max(longest, answer.seconds)
        if fault := answer.fault(case):
            faults.append(f"{case.kind}: {case}\n      {fault}")
    with capsys.disabled():
        found = Counter(fault.splitlines()[1].strip().partition(":")[0][:30] for fault in faults)
        print(f"\n{kind}: {len(table)} bad inputs, {len(faults)} answered badly {dict(found)}, longest {longest:.1f} s")
    assert not faults, "\n" + "\n".join(faults)

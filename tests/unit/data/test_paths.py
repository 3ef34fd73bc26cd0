"""A path, a directory, a glob or a URL names the same rows wherever data are given: one table of names, read in eight ways.

Files have 1, 2, 4, ... rows, so that a number of rows says which files were read. 512 rows are in files that no listing takes.
"""

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons import config
from crmuons.data import arrow
from crmuons.data.inspection import inspect
from crmuons.data.manifest import event_files
from crmuons.data.prepare.build import PrepareSettings, claim_dataset
from crmuons.data.reader import read_slice
from crmuons.data.recorded import find_again
from crmuons.data.sample import sample_events
from crmuons.data.sampler import cut_files
from crmuons.data.selection import Selection, training_selection
from crmuons.evaluation import datasets
from crmuons.evaluation.nature.origins import recorded
from crmuons.evaluation.tasks import in_process
from crmuons.generation.load import is_model
from crmuons.generation.primaries import PrimaryFiles
from crmuons.training import setup

FILES = {
    "flat/a.parquet": 1, "flat/b.parquet": 2, "flat/c.pq": 4, "flat/.hidden.parquet": 512, "flat/_tmp.parquet": 512,
    "nested/y1/a.parquet": 1, "nested/y2/d.parquet": 8, "nested/y2/deep/e.parquet": 16,
    "nested/_temporary/0/x.parquet": 512, "nested/.git/x.parquet": 512,
    "spark/x.parquet/part-0.parquet": 16, "spark/x.parquet/part-1.parquet": 32,
    "spark/x.parquet/_temporary/0/part-1.parquet": 512, "spark/y.parquet": 64,
    "odd/sp ace.parquet": 1, "odd/br[1].parquet": 2, "odd/co,mma.parquet": 4, "odd/ünï.parquet": 8, "odd/per%20cent.parquet": 16,
    "odd/{x}.parquet": 32, "odd/star*.parquet": 64, "odd/q?.parquet": 128, "odd/br1.parquet": 256,
    "dir [1]/a.parquet": 1, "dir 1/b.parquet": 2, "#hash/a.parquet": 1, "a:b/a.parquet": 1, "~tilde/b.parquet": 2, "-dash/c.parquet": 4,
    "data.parquet.d/a.parquet": 1, "x=1/y=2/p.parquet": 8, "x=2/y=2/p.parquet": 16, "UPPER.PARQUET": 512, "upper/A.Parquet": 512,
    "none/no rows.parquet": 0,
}  # fmt: skip
OTHER = ("flat/notes.txt", "spark/x.parquet/_SUCCESS", "spark/_SUCCESS", "foreign/readme.md", "none/empty.txt")
LINKS = {
    "links/a.parquet": "../flat/a.parquet", "links/b.parquet": "{root}/flat/b.parquet", "links/dead.parquet": "nowhere.parquet",
    "links/loop": ".", "twice/flat": "../flat", "twice/again": "../flat", "years/2024": "../nested/y1", "years/2025": "../nested/y2",
    "alias": "years", "ring/one": "../ring2", "ring2/two": "../ring", "ring/a.parquet": "../flat/a.parquet", "self.parquet": "self.parquet",
}  # fmt: skip

NOTHING, SUFFIX = "no such file or directory", r"the directory holds no file ending in \.parquet or \.pq"
NO_MATCH = "the glob matches no file"
ENTRIES = {
    # Files
    "flat/a.parquet": 1, "flat/c.pq": 4, "./flat/a.parquet": 1, "flat/../flat/a.parquet": 1, "{root}/flat/a.parquet": 1,
    "file://{root}/flat/b.parquet": 2, "local://{root}/flat/b.parquet": 2, "flat//a.parquet": 1, "flat/.hidden.parquet": 512,
    "flat/_tmp.parquet": 512, "UPPER.PARQUET": 512, "links/a.parquet": 1, "links/b.parquet": 2, "odd/sp ace.parquet": 1,
    "odd/br[1].parquet": 2, "odd/co,mma.parquet": 4, "odd/ünï.parquet": 8, "odd/per%20cent.parquet": 16, "odd/{x}.parquet": 32,
    "odd/star*.parquet": 64, "odd/q?.parquet": 128, "a:b/a.parquet": 1, "#hash/a.parquet": 1, "none/no rows.parquet": 0,
    "file://{root}/odd/sp ace.parquet": 1, "file://{root}/odd/per%20cent.parquet": 16,
    # Directories
    "flat": 7, "flat/": 7, "flat//": 7, "./flat": 7, "{root}/flat": 7, "{root}/flat/": 7, "file://{root}/flat": 7, "file://{root}/flat/": 7,
    "nested": 25, "nested/y2": 24, "spark": 112, "spark/x.parquet": 48, "spark/x.parquet/": 48, "odd": 511, "dir [1]": 1, "dir [1]/": 1,
    "links": 3, "links/loop": 3, "twice": 7, "years": 25, "years/": 25, "alias": 25, "ring": 1, "ring2": 1, "x=1": 8, "a:b": 1,
    "data.parquet.d": 1, "~tilde": 2, "-dash": 4, "nested/_temporary": 512, "nested/.git": 512, "spark/x.parquet/_temporary": 512,
    "none": 0,
    # Globs
    "flat/*": "notes.txt is not a Parquet file", "flat/*.parquet": 3, "flat/*.p*": 7, "flat/[ab].parquet": 3, "flat/[!a].parquet": 2, "flat/?.parquet": 3,
    "*/a.parquet": 5, "nested/*": 25, "nested/*/": 25, "nested/**": 25, "nested/**/*.parquet": 25, "nested/**/e.parquet": 16, "**/e.parquet": 16,
    "nested/y?/*.parquet": 9, "spark/*.parquet": 112, "spark/*": 112, "spark/**/*.parquet": 112, "spark/*/part-*.parquet": 48,
    "odd/*": 511, "odd/*.parquet": 511, "odd/*,*": 4, "odd/* *": 1, "odd/br[[]1].parquet": 2, "dir*": 3, "links/*": 3, "links/*.parquet": 3,
    "links/**/*.parquet": 3, "twice/*": 7, "years/*/*.parquet": 9, "alias/**": 25, "x=*": 24, "x=*/y=2/*": 24, "flat/_*": 512, "flat/.h*": 512,
    "{root}/flat/*.parquet": 3, "file://{root}/flat/*.parquet": 3, "*/y2/**": 24, "**/part-?.parquet": 48,
    # Braces
    "flat/{{a,b}}.parquet": 3, "flat/{{a,b,c}}.{{parquet,pq}}": 7, "{{flat,years}}": 32, "nested/y{{1..2}}": 25, "nested/y{{1..2}}/*.parquet": 9,
    "{root}/{{flat,nested}}": 32, "file://{root}/flat/{{a,b}}.parquet": 3, "flat/{{a,missing}}.parquet": 1, "flat/{{a,a}}.parquet": 1,
    # Refusals
    "missing": NOTHING, "missing.parquet": NOTHING, "missing/*.parquet": NO_MATCH, "flat/*.orc": NO_MATCH, "flat/z[ab].parquet": NO_MATCH,
    "empty": SUFFIX, "foreign": SUFFIX, "flat/a.parquet/": 1, "links/dead.parquet": "", "self.parquet": "", "upper": SUFFIX, "empty/*": NO_MATCH,
    "flat/notes.txt": "is not a Parquet file", "broken/zero.parquet": "is not a Parquet file", "broken/text.parquet": "is not a Parquet file",
    "broken/cut.parquet": "is not a Parquet file", "broken": "is not a Parquet file", "broken/other.parquet": "no column 'primary'|muons",
    "": "an empty path", "   ": "an empty path", "pipes/in.parquet": "neither a file nor a directory", "file://{root}/missing": NOTHING,
    "nosuch://host/a.parquet": "crmuons reads no nosuch:// URLs", "flat/{{q,r}}.parquet": NOTHING,
    "x" * 300: NOTHING, "flat/{{1..9999999}}.parquet": "stand for more than 100,000 names",
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory, toy_events):
    root = tmp_path_factory.mktemp("paths")
    table = arrow.to_table(toy_events(200))
    assert table.num_rows >= 512
    for name, rows in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(0, rows), root / name)
    for name in OTHER:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no data")
    for name, target in LINKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target.format(root=root))
    for name in ("empty", "broken", "pipes"):
        (root / name).mkdir()
    (root / "broken/zero.parquet").touch()
    (root / "broken/text.parquet").write_text("no Parquet" * 50)
    (root / "broken/cut.parquet").write_bytes((root / "flat/b.parquet").read_bytes()[:-100])
    pq.write_table(pa.table({"x": [1, 2]}), root / "broken/other.parquet")
    os.mkfifo(root / "pipes/in.parquet")
    return root


def rows_of(found):
    return sum(read_slice(part, Selection())[1].rows for part in cut_files(found))


def data_of(place):
    return config.load(None, [f"data.train={json.dumps([place])}", "data.validation_share=0", "train.steps=1"]).data


def by_train(place, _):
    data = data_of(place)
    selection = training_selection(data, None)
    _, counts = sample_events(setup._list_files(data, selection), [(selection, 10**9)])
    return counts.rows


def by_inspect(place, _):
    inspection = inspect([place], max_rows=None)
    if inspection.broken:
        raise ValueError(next(iter(inspection.broken.values())))
    return inspection.rows


def by_validate(place, _):
    assert not is_model(place)
    recorded([place])
    return by_evaluate(place, _)


def by_evaluate(place, _):
    with in_process() as executor:
        return datasets.read(executor, [place], [(Selection(), 10**9)], 0)[1].rows


WAYS = {
    "inspect": by_inspect,
    "train": by_train,
    "prepare": lambda place, out: rows_of(claim_dataset(out / "ready", [place], PrepareSettings()).files),
    "primaries": lambda place, _: sum(len(primaries.ids) for primaries in PrimaryFiles([place])),
    "evaluate": by_evaluate,
    "validate": by_validate,
    "resume": lambda place, _: rows_of(find_again(event_files(place), [place], moved=False).files),
    "moved": lambda place, _: rows_of(find_again(event_files(place), [place], moved=True).files),
}


def answer(way, place, out):
    try:
        return WAYS[way](place, out)
    except (OSError, ValueError) as error:
        return str(error)


LISTINGS = {
    "inspect": event_files,
    "train": lambda place: setup._list_files(data_of(place), training_selection(data_of(place), None)),
    "primaries": lambda place: PrimaryFiles([place]).files,
}


def listed(list_of, place):
    """Return the rows of the files that a way lists, by the table above; reading them would take seconds for all names."""
    try:
        paths = [Path(file.url.removeprefix("file://")).resolve() for file in list_of(place)]
    except (OSError, ValueError) as error:
        return str(error)
    return sum(FILES[str(path.relative_to(Path.cwd()))] for path in paths)


def check(answers, entry, expected):
    if isinstance(expected, int):
        assert answers == dict.fromkeys(answers, expected)
        return
    assert all(isinstance(said, str) and re.search(expected, said) for said in answers.values()), answers
    assert not any("\n" in said for said in answers.values())
    if entry.strip() and entry != "broken/other.parquet":  # Primaries may have other columns.
        said = [said.removeprefix("data.train: ").partition(" (got [")[0] for said in answers.values()]
        assert len(set(said)) == 1, answers  # Settings name themselves.


def place_of(entry, tree):
    return entry.format(root=tree) if "{root}" in entry or "{{" in entry else entry


def test_a_name_lists_the_same_rows_in_every_way(tree, monkeypatch):
    monkeypatch.chdir(tree)
    for entry, expected in ENTRIES.items():
        if isinstance(expected, int) or not re.search("Parquet|muons", expected):  # Those are known once they are read.
            check({way: listed(list_of, place_of(entry, tree)) for way, list_of in LISTINGS.items()}, entry, expected)


# Reading in all ways takes 0.3 s a name: every eighth, and each kind of refusal once.
READ = [
    *list(ENTRIES)[::8],
    "broken/zero.parquet",
    "broken/text.parquet",
    "broken/other.parquet",
    "empty",
    "",
    "x" * 300,
    "dir [1]",
    "links",
]


@pytest.mark.parametrize("entry", dict.fromkeys(READ), ids=lambda entry: repr(entry)[:40])
def test_a_name_reads_the_same_rows_in_every_way(entry, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree)
    check({way: answer(way, place_of(entry, tree), tmp_path / "out") for way in WAYS}, entry, ENTRIES[entry])

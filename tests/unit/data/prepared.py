"""What the tests of preparation and of shards do with the data set of conftest.py."""

import shutil
from pathlib import Path

import numpy as np

from crmuons.data import reader, sampler
from crmuons.data.events import concat
from crmuons.data.manifest import event_files
from crmuons.data.prepare import build
from crmuons.data.prepare.shuffle import PrepareSettings
from crmuons.data.selection import Selection
from crmuons.models.features import fit_to_file

SHARES = {"validation_share": 0.2, "test_share": 0.1}


def make(raw, out, **settings):
    begun = build.claim_dataset(out, [str(raw)], PrepareSettings(**(SHARES | settings)))
    return build.prepare_dataset(begun, fit_to_file)


def read_all(urls, selection=None):
    selection = selection or Selection()
    slices = sampler.cut_files(event_files(str(urls), selection.bounds))
    return concat([reader.read_slice(part, selection)[0] for part in slices])


def identities(events):
    """Each event as bytes: ids, primary, and its muons, whose order is random."""
    muons = np.split(events.muons, np.cumsum(events.counts)[:-1]) if len(events.counts) else []
    rows = zip(events.ids, events.primaries, (np.sort(each, axis=0) for each in muons), strict=True)
    return [b"".join(part.tobytes() for part in row) for row in rows]


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of(done, tmp_path):
    return Path(shutil.copytree(done, tmp_path / "copy"))


def damage(path, at, change=0x5A):
    held = bytearray(path.read_bytes())
    held[at] ^= change
    path.write_bytes(held)

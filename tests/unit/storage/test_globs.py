"""Globs in a federation match like pathlib's, and list only folders that can hold a match."""

import asyncio

import pytest

from crmuons.storage.http.globs import glob

TREE = {"/d": ["a", "b", "x.txt"], "/d/a": ["1.pq", "sub"], "/d/a/sub": ["2.pq"], "/d/b": ["1.pq", "3.txt"]}


@pytest.fixture
def listed():
    return []


def match(pattern, listed):
    def entry(path):
        return {"name": path, "type": "directory" if path in TREE else "file"}

    async def stat(path):
        if path not in TREE:
            raise FileNotFoundError(path)
        return entry(path)

    async def ls(folder):
        listed.append(folder)
        return [entry(f"{folder}/{name}") for name in TREE[folder]]

    return list(asyncio.run(glob(pattern, stat, ls)))


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("/d/*/*.pq", ["/d/a/1.pq", "/d/b/1.pq"]),
        ("/d/[!a]/*", ["/d/b/1.pq", "/d/b/3.txt"]),
        ("/d/**/*.pq", ["/d/a/1.pq", "/d/a/sub/2.pq", "/d/b/1.pq"]),
        ("/d/*", ["/d/a", "/d/b", "/d/x.txt"]),
        ("/d/?/sub/*.txt", []),
        ("/missing/*", []),
    ],
)
def test_a_pattern_matches(pattern, matches, listed):
    assert match(pattern, listed) == matches


def test_a_folder_that_cannot_hold_a_match_is_not_listed(listed):
    match("/d/b*/*.pq", listed)
    assert listed == ["/d", "/d/b"]

"""Digests of remote files: the ranks share them, a task gets its own, and a run's fingerprint does not depend on them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from crmuons.runs.directory import Run
from crmuons.storage import files
from crmuons.storage.changed import ChangedError
from crmuons.storage.identity import Digests
from crmuons.training import distributed
from crmuons.training.openings import common_digests


def test_the_fingerprint_does_not_depend_on_how_much_the_start_read(tmp_path):
    def fingerprint(*digests):
        entries = [[f"memory://lake/{number}", 7, "stamp", digest] for number, digest in enumerate(digests)]
        (tmp_path / "files.json").write_text(json.dumps([*entries, ["/local", 3, "1", "d" * 16]]))
        return Run(tmp_path).fingerprint()

    assert fingerprint(None, None) == fingerprint("a" * 16, None) == fingerprint(None, "b" * 16)
    assert len({fingerprint(None, None), fingerprint("a" * 16, "b" * 16), fingerprint("a" * 16, "c" * 16)}) == 3


def test_ranks_share_digests_and_refuse_a_file_that_they_saw_differently(monkeypatch):
    urls = ["memory://a", "memory://b", "memory://c"]
    digests = Digests({urls[0]: "00000000000000ff", urls[1]: "f" * 16})
    assert common_digests(digests, urls, torch.device("cpu")) == digests.known
    other = np.array([0, 2**64 - 1, 7], np.uint64)

    def of_two(values):
        return torch.stack([values, torch.from_numpy(other.view(np.int64))])

    monkeypatch.setattr(distributed, "gather", of_two)
    assert common_digests(digests, urls, torch.device("cpu"))[urls[2]] == "0000000000000007"
    other[0] = 1
    with pytest.raises(ChangedError, match="memory://a has changed: end 00000000000000ff when it was first opened"):
        common_digests(digests, urls, torch.device("cpu"))


def test_a_task_gets_the_digests_of_its_own_files_by_their_first_name():
    file = files.File("memory://new/a", 3, first_url="memory://old/a")
    digests = Digests({"memory://old/a": "1" * 16, "memory://old/b": "2" * 16})
    assert digests.of(file).digest == "1" * 16
    assert digests.part([file]).known == {"memory://old/a": "1" * 16}
    assert digests.of(replace(file, digest="3" * 16)).digest == "3" * 16

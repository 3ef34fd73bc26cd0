"""Bad input on the command line: the fast part of the table in tests/integration/bad_input, which has all of it."""

import pytest

from tests.integration.bad_input.answers import World, answer
from tests.integration.bad_input.cases import TABLES

FAST = {"numbers": 30, "settings": 30}  # Of each kind, one case in this many.


@pytest.mark.parametrize("kind", FAST)
def test_bad_input_is_refused_in_a_line_that_names_it(kind, tmp_path, monkeypatch):
    world = World(tmp_path)
    (tmp_path / "preset.toml").write_text("[train]\nsteps = 1\n[scaling]\nnum_workers = 0\n")
    monkeypatch.chdir(tmp_path)
    table = list(TABLES[kind](world))
    assert len(table) > 150
    faults = {str(case): fault for case in table[:: FAST[kind]] if (fault := answer(case.words).fault(case))}
    assert not faults

"""Following a metrics file that grows, and one that went back to a checkpoint."""

from crmuons.watch import _new_lines


def test_lines_are_read_once_and_only_when_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert _new_lines(path, 0) == (0, [])
    path.write_text('{"step": 1}\n{"st')
    assert _new_lines(path, 0) == (12, ['{"step": 1}'])
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert _new_lines(path, 12) == (24, ['{"step": 2}'])


def test_a_file_that_was_rewritten_is_read_from_its_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    assert _new_lines(path, 24) == (12, ['{"step": 1}'])  # Shorter than what was read.
    path.write_text('{"step": 1}\n{"step": 2, "more": 3}\n')
    assert _new_lines(path, 24)[1] == ['{"step": 1}', '{"step": 2, "more": 3}']  # Byte 24 is inside a line.

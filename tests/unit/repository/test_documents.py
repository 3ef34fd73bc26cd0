"""What holds for every document that people write by hand."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
MAX_WIDTH = 120
HISTORY = {"docs/log.md"}  # A record: old entries stay as they were written.
TO_DO = {"docs/simulator.md", "docs/validation.md"}  # Still too wide.


def text_of(name):
    """Return the document without what its fenced blocks show: the output of a command is as wide as it is."""
    return "".join((ROOT / name).read_text(encoding="utf-8").split("```")[::2])


def documents():
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split() if name not in HISTORY | TO_DO]


def test_no_line_of_a_document_is_wider_than_120_characters():
    """Longer ones cannot be read in a terminal or compared in a diff; a wide table becomes narrow ones or a list."""
    assert "README.md" in documents()
    assert "docs/performance.md" in documents()
    wide = [f"{name}: {line}" for name in documents() for line in text_of(name).splitlines() if len(line) > MAX_WIDTH]
    assert wide == []

"""Text files are UTF-8 whatever the locale: every call that opens one says so."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
WITHOUT = {"read_text": 0, "write_text": 1}  # Positional arguments before `encoding`.


def opens_text(call):
    """Whether a call opens a text file without naming the encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = any(keyword.arg == "encoding" for keyword in call.keywords)
    if name in WITHOUT:
        return not named and len(call.args) <= WITHOUT[name]
    mode = call.args[-1] if call.args and isinstance(call.args[-1], ast.Constant) else None
    if name == "NamedTemporaryFile":
        return not named and mode is not None and "b" not in str(mode.value)
    return (
        name == "open"
        and not named
        and isinstance(getattr(mode, "value", None), str)
        and set(mode.value) <= set("rwax+")
    )


def test_every_text_file_is_opened_as_utf_8():
    sources = {
        path: path.read_text(encoding="utf-8")
        for folder in ("crmuons", "tune", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, source in sources.items()
        if any(name in source for name in (*WITHOUT, "open(", "NamedTemporaryFile"))  # Parsing all takes a second.
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and opens_text(node)
    ]
    assert found == []

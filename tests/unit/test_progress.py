"""Bars name what they count, and what libraries write never stands inside one."""

import contextlib
import logging
import os
import pty
import sys
import termios

from crmuons.progress import keep_bars_whole, progress


def test_a_bar_names_its_unit_and_whole_numbers(capsys):
    with progress(25, unit="files", what="read") as bar:
        bar.update(25)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("read: 0/25 files [")
    assert last.startswith("read: 25/25 files [")
    with progress(4_000_000, unit="events", what="simulate"), progress(None, unit="tasks", what="run"):
        pass
    said = capsys.readouterr().err
    assert "simulate: 0.00/4.00M events [" in said
    assert "run: 0.00/? tasks [" in said


def test_lines_of_libraries_stand_above_the_bar(monkeypatch):
    """A handler of a library's own, and a line in two parts: each is a whole line of its own."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        keep_bars_whole()
        handler = logging.StreamHandler()
        record = logging.makeLogRecord({"msg": "2030/01/01 INFO library: creating tables"})
        with progress(25, unit="files", what="read") as bar:
            bar.update(5)
            bar.refresh()
            handler.emit(record)
            print("half", end="", file=sys.stderr)
            bar.update(5)
            bar.refresh()
            print(" a line", file=sys.stderr)
        monkeypatch.undo()
    written = _whole_screen(reader).decode()
    # What is on the screen: after a carriage return, the line is overwritten.
    shown = [line.rpartition("\r")[2].strip() for line in written.replace("\r\n", "\n").split("\n")]
    assert "2030/01/01 INFO library: creating tables" in shown
    assert "half a line" in shown
    assert any(line.startswith("read:") and "10/25 files" in line for line in shown)


def _whole_screen(reader: int) -> bytes:
    """Read a terminal whose writer is closed: one read may give a part only, and the last ends with EIO."""
    parts = []
    with os.fdopen(reader, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while part := screen.read(4096):
            parts.append(part)
    return b"".join(parts)


def test_nothing_is_replaced_outside_a_terminal(capsys):
    before = sys.stderr
    keep_bars_whole()
    assert sys.stderr is before

"""Bars name what they count, and what libraries write never stands inside one."""

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
    with os.fdopen(reader, "rb", buffering=0) as screen, os.fdopen(writer, "w") as terminal:
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
        terminal.flush()
        written = screen.read(1_000_000).decode()
        monkeypatch.undo()
    # What is on the screen: after a carriage return, the line is overwritten.
    shown = [line.rpartition("\r")[2].strip() for line in written.replace("\r\n", "\n").split("\n")]
    assert "2030/01/01 INFO library: creating tables" in shown
    assert "half a line" in shown
    assert any(line.startswith("read:") and "10/25 files" in line for line in shown)


def test_nothing_is_replaced_outside_a_terminal(capsys):
    before = sys.stderr
    keep_bars_whole()
    assert sys.stderr is before

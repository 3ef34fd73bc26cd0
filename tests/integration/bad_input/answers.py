"""A bad input, the command's answer to it, and what may be wrong with an answer."""

import io
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from crmuons import cli

SECONDS, NETWORK_SECONDS = 10, 60  # No case may take longer; a server that is down is asked again for a while.
LINES = 3  # Of an answer.
REMEDY = re.compile(
    r"expected|give|name a|choose|copy|remove|set |nearest|Input should|is not|holds? no|take|say|write|check|prepare|install"
    r"|form |use |correct|unusable|leave |keep |not a |neither |nested|rename|must|required|no (file|model|preset|space|journal)|does not|cannot|explains"
)
BAR = re.compile(r"^\w+: .*\[\d\d:\d\d")


@dataclass(frozen=True)
class World:
    """What the cases find: toy data, a preset, a trained run, its model, prepared and generated data."""

    root: Path

    def __getattr__(self, name: str) -> str:
        return str(self.root / name)


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        kind: numbers, paths, settings, presets or files.
        words: of the command, from the world.
        names: one of these must be in the answer: the thing that is wrong.
        damage: changes the world's copy in the way; the copy is then the world of `words`.
        may_pass: the command may succeed, since the file can be made again or is not needed, if it says nothing wrong.
        variables: of the environment.
    """

    kind: str
    words: tuple[str, ...]
    names: tuple[str, ...] = ()
    damage: Callable[[Path], None] | None = None
    may_pass: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(word if len(word) < 60 else f"...{word[-30:]}" for word in self.words)[:300]


@dataclass(frozen=True)
class Answer:
    code: int
    text: str
    printed: str
    seconds: float

    def fault(self, case: Case) -> str:
        """Return what is wrong with the answer; empty if nothing is."""
        if self.code < 0:
            return f"no answer within {self.seconds:.0f} s"
        obeyed = {letter for letter in self.text + self.printed if not (letter.isprintable() or letter in "\t\n\r")}
        if obeyed:  # By a terminal.
            return f"shows the control characters {obeyed}: {(self.text + self.printed)[:300]!r}"
        if self.code == 70 or "Traceback" in self.text or "did not foresee" in self.text:
            return f"not foreseen: {self.text[:300]}"
        if self.code == 0:
            return "" if case.may_pass else "accepted"
        return self._fault_of_words(case)

    def _fault_of_words(self, case: Case) -> str:
        lines = [line for line in self.text.splitlines() if line.strip() and not BAR.search(line)]
        if not lines:  # `inspect` says on standard output what it found.
            said = self.printed.splitlines()
            of_it = [
                line
                for line in said
                if (any(name in line for name in case.names) if case.names else REMEDY.search(line))
            ]
            lines = of_it[:LINES] or said[-LINES:]
        text = "\n".join(lines)
        if not 1 <= len(lines) <= LINES or len(text) > 1500:
            return f"{len(lines)} lines with {len(text)} letters: {text[:300]}"
        if case.names and not any(name in text for name in case.names):
            return f"does not name {' or '.join(case.names)}: {text[:300]}"
        return "" if REMEDY.search(text) else f"has no remedy: {text[:300]}"


class _TooLongError(BaseException):
    """Not an Exception: nothing catches it on the way."""


def answer(words: tuple[str, ...]) -> Answer:
    """Run a command in this process."""
    said, printed, begin = io.StringIO(), io.StringIO(), time.monotonic()
    with redirect_stderr(said), redirect_stdout(printed):
        try:
            # An evaluation or a validation whose words are right takes seconds.
            waits = words[0] in ("evaluate", "validate") or any("127.0.0.1:1" in word for word in words)
            with _limit(NETWORK_SECONDS if waits else SECONDS):
                code = cli.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except _TooLongError:
            code = -1
    return Answer(code, said.getvalue(), printed.getvalue(), time.monotonic() - begin)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ask(case: Case, world: World, copy: Path) -> Answer:
    """Return the answer to a case; damaged files are those of a copy of the world."""
    if case.damage is None:
        shutil.rmtree(world.out, ignore_errors=True)
        with mock.patch.dict(os.environ, case.variables):
            return answer(case.words)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world.root, copy, ignore=lambda _, names: {name for name in names if name in ("fifo", "loop")})
    case.damage(copy)
    return answer(tuple(word.replace(str(world.root), str(copy)) for word in case.words))

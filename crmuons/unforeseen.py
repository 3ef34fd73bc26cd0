"""End a command in one sentence, also after an error that nobody foresaw: its traceback goes to a report file."""

import os
import platform
import re
import select
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from crmuons import interrupts, provenance
from crmuons.interrupts import INTERRUPTED
from crmuons.storage.atomic import FULL, DiskFullError
from crmuons.storage.redact import message, without_credentials

PIPE_CLOSED = 141  # What shells show for a program that a closed pipe ended.
FAILED, UNFORESEEN = 1, 70  # 70 is EX_SOFTWARE of sysexits.h.
DEBUG = "--debug"

# Errors that crmuons raises about what a user gave, with the remedy in the message.
FORESEEN = (ValueError, OSError, ImportError)

_SECRET_NAME = re.compile(r"token|passw|secret|credential|api_?key|access_?key|signature|authz", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    rf"([\w-]*(?:{_SECRET_NAME.pattern}|\bsig)[\w-]*[\"']?\s*[=:]\s*[\"']?)[^&\s\"',;)]+", re.IGNORECASE
)


def guarded(name: str, work: Callable[[], int | None], words: Sequence[str]) -> int:
    """Run a command and return its exit code; whatever it raises becomes one sentence on standard error.

    Args:
        name: what the sentence begins with, such as "crmuons train".
        work: the command; returns its exit code, None for 0.
        words: the command line, for the report; with DEBUG in it, every error shows its traceback too.
    """
    try:
        return _flushed(int(work() or 0))
    except KeyboardInterrupt:
        print(message(interrupts.sentence(name)), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - nothing may end in a traceback on the screen; the report has it
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return PIPE_CLOSED
        if DEBUG in words:
            traceback.print_exc()
        if interrupts.was_received():  # A library has turned the interruption into another error.
            print(message(interrupts.sentence(name)), file=sys.stderr)
            return INTERRUPTED
        if isinstance(error, OSError) and error.errno in FULL and not isinstance(error, DiskFullError):
            error = DiskFullError(error, _fullest(error.filename), 0)
        if isinstance(error, FORESEEN):
            print(message(f"{name}: {error}"), file=sys.stderr)
            return FAILED
        print(message(f"{name}: {describe(error)}; {_where(error, name, words)}"), file=sys.stderr)
        return UNFORESEEN


def _fullest(filename: str | None) -> Path:
    """Return a place on the full disk: the file, or, because a failed write names none, the likely place with least room."""
    places = [Path(filename)] if filename else [Path.cwd(), Path(tempfile.gettempdir())]
    return min(places, key=lambda place: shutil.disk_usage(place if place.exists() else place.parent).free)


def _flushed(code: int) -> int:
    """Write all output, then return the exit code: a closed pipe can be handled here, but not when Python ends."""
    sys.stdout.flush()
    return code


def _output_is_closed() -> bool:
    """Return whether the reader of standard output has gone, as `head` does once it has its lines.

    A connection to a server breaks with the same error.
    """
    with suppress(OSError):  # A standard output that is no file cannot be closed from outside.
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if poll.poll(0):  # Registered for no events, it reports only errors.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it ends.
            return True
    return False


def describe(error: BaseException) -> str:
    """Return an error that crmuons did not foresee in one short sentence, without secrets."""
    first = next(iter(_without_secrets(str(error)).strip().splitlines()), "")[:200]
    return f"an error that crmuons did not foresee ({type(error).__name__}{f': {first}' if first else ''})"


def _where(error: BaseException, name: str, words: Sequence[str]) -> str:
    try:
        path = write_error_report(error, name, words)
    except OSError as full:
        return f"no report could be written ({full.strerror}); {DEBUG} shows the traceback"
    return f"please report it with the file {path}"


def write_error_report(error: BaseException, name: str, words: Sequence[str]) -> str:
    """Write traceback, command line and versions to a new file that only the user can read; return its path.

    Raises:
        OSError: if it cannot be written.
    """
    now = datetime.now(UTC)
    report = "\n".join(
        [
            f"{name}, {now.isoformat(timespec='seconds')}",
            f"words: {' '.join(words)}",
            *(f"{key}: {value}" for key, value in _versions().items()),
            "",
            *traceback.format_exception(error),
        ]
    )
    descriptor, path = tempfile.mkstemp(prefix=f"crmuons-report-{now:%Y%m%d-%H%M%S}-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(_without_secrets(report))
    return path


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0], "platform": platform.platform()}
    # A broken installation may be the very error that is reported.
    with suppress(Exception):
        versions |= provenance.code_tags()
    return versions


def _without_secrets(text: str) -> str:
    """Return the text without credentials in URLs, values of variables that hold secrets, and `secret=VALUE`."""
    for variable, value in os.environ.items():
        if _SECRET_NAME.search(variable) and len(value) >= 6:
            text = text.replace(value, "***")
    return _SECRET_VALUE.sub(r"\1***", without_credentials(text))

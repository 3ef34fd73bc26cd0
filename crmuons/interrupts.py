"""End the program in one sentence at Ctrl-C, SIGTERM and SIGHUP, from its first line to its last.

A training that has begun saves a checkpoint instead (training/signals.py). This module imports nothing else of crmuons,
because a signal may come while the rest is imported, which takes seconds.
"""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

INTERRUPTED = 130  # The exit code that shells use after Ctrl-C: a script then does not run the next command.
AGAIN_S = 0.05

_received: list[int] = []
_caught: list[int] = []


def catch() -> None:
    """Raise KeyboardInterrupt in the main thread at each of the signals, and let an unhandled one end in a sentence.

    A signal that is ignored, as SIGHUP under nohup, stays so.
    """
    process = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:  # A forked child prints nothing.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _received.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, interrupt)
            _caught.append(number)
    sys.excepthook = _say_or_show
    sys.unraisablehook = _raise_again_or_show


def release() -> None:
    """Let the signals end the process without a message: its work is done, and Python would print a traceback of its exit."""
    while _caught:
        signal.signal(_caught.pop(), signal.SIG_DFL)


def was_received() -> bool:
    """Return whether a signal has come. An error after a signal is a consequence of the signal."""
    return bool(_received)


def sentence(name: str) -> str:
    """Return what a command says at its end after a signal."""
    by = {number: f" by {signal.Signals(number).name}" for number in _received[-1:] if number != signal.SIGINT}
    return f"{name}: interrupted{''.join(by.values())}"


def _say_or_show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an unhandled error as Python does; for an interruption, as while crmuons is imported, print one sentence."""
    if not (issubclass(kind, KeyboardInterrupt) or was_received()):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"{sentence('crmuons')}\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)  # Python would first finish its imports, and then end by the signal.


def _raise_again_or_show(lost: "sys.UnraisableHookArgs") -> None:
    """Raise an interruption again if it came while a destructor ran, because Python only prints such an error."""
    if isinstance(lost.exc_value, KeyboardInterrupt) and _received:
        again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), _received[-1]))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)

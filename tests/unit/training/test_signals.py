"""The first signal asks the workers to stop; the second ends at once; nohup keeps its meaning."""

import os
import signal
import time

import pytest

from crmuons.training.signals import stop_on_signals


def _send_twice(number):
    for _ in range(2):
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # The handler runs between two operations of the interpreter.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before, asked = signal.getsignal(number), []
    with pytest.raises(KeyboardInterrupt), stop_on_signals(lambda: asked.append(1)):
        _send_twice(number)
    assert asked == [1]
    assert signal.getsignal(number) is before


def test_a_run_under_nohup_outlives_its_terminal(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(lambda: pytest.fail("SIGHUP was ignored before")):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)

"""What the chosen steps of a run spend their time on: a trace for Perfetto or chrome://tracing (train.profile_steps)."""

from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerAction, profile


class StepProfiler:
    """Records steps with torch.profiler: this process's CPU, and its GPU where it has one.

    Args:
        steps: the first and the last one.
        directory: of the traces, `steps-FIRST-LAST.json.gz`; made when there is one.
        send: takes each trace once it is written.
    """

    def __init__(self, steps: tuple[int, int], directory: Path, send: Callable[[Path], None]) -> None:
        self.first, self.last = steps
        self.directory, self.send = directory, send
        self.recording: profile | None = None
        self.begun_after = self.done = 0

    def __call__(self, done: int) -> None:
        """Take note of how many steps are done: told before the first step, and after each."""
        self.done = done
        if self.recording is not None and done < self.last:
            self.recording.step()
        elif self.recording is not None:
            self.close()
        elif self.first - 1 <= done < self.last:
            self.begun_after = done
            self.recording = profile(schedule=lambda _: ProfilerAction.RECORD)
            self.recording.step_num = done + 1  # The trace numbers its steps as the run does.
            self.recording.start()

    def close(self) -> None:
        """Write what was recorded since, also where the run ends before the last of the steps."""
        if self.recording is None:
            return
        recorded, self.recording = self.recording, None
        recorded.stop()
        if self.done == self.begun_after:  # Not one step was done.
            return
        self.directory.mkdir(exist_ok=True)
        trace = self.directory / f"steps-{self.begun_after + 1}-{self.done}.json.gz"
        recorded.export_chrome_trace(str(trace))
        self.send(trace)

"""Record steps of a run with torch.profiler (train.profile_steps); Perfetto and chrome://tracing show the traces."""

import logging
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerAction, profile

logger = logging.getLogger(__name__)

SORT_BY, ROWS = "self_cpu_time_total", 15  # Order and length of the printed table.


class StepProfiler:
    """Record the CPU time of this process, and the GPU time if it has a GPU.

    Args:
        steps: the first and the last step to record.
        directory: directory of the traces `steps-FIRST-LAST.json.gz`; the first trace creates it.
        send: function that is called with each written file: the trace, and the table of its operations.
    """

    def __init__(self, steps: tuple[int, int], directory: Path, send: Callable[[Path], None]) -> None:
        self.first, self.last = steps
        self.directory, self.send = directory, send
        self.recording: profile | None = None
        self.begun_after = self.done = 0

    def __call__(self, done: int) -> None:
        """Start or stop recording. Call it with the number of steps done, before the first step and after each step."""
        self.done = done
        if self.recording is not None and done < self.last:
            self.recording.step()
        elif self.recording is not None:
            self.close()
        elif self.first - 1 <= done < self.last:
            self.begun_after = done
            self.recording = profile(schedule=lambda _: ProfilerAction.RECORD)
            self.recording.step_num = done + 1  # So that the trace has the step numbers of the run.
            self.recording.start()

    def close(self) -> None:
        """Write the trace of the steps recorded so far, also if the run ends before the last step to record."""
        if self.recording is None:
            return
        recorded, self.recording = self.recording, None
        recorded.stop()
        if self.done == self.begun_after:  # No step was done.
            return
        self.directory.mkdir(exist_ok=True)
        trace = self.directory / f"steps-{self.begun_after + 1}-{self.done}.json.gz"
        recorded.export_chrome_trace(str(trace))
        table = recorded.key_averages().table(sort_by=SORT_BY, row_limit=ROWS, max_name_column_width=50)
        text = trace.with_name(trace.name.replace(".json.gz", ".txt"))
        text.write_text(table, encoding="utf-8")
        logger.info("where the time of steps %d to %d went:\n%s", self.begun_after + 1, self.done, table)
        for path in (trace, text):
            self.send(path)

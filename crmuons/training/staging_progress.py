"""Show the progress and the warnings of a run's staging in the process that started the run."""

import logging
import shutil
from typing import Any

from tqdm import tqdm

from crmuons.progress import progress
from crmuons.runs.directory import Run
from crmuons.storage.staging.download import REPORT, WARNING
from crmuons.storage.staging.stager import read_progress

logger = logging.getLogger(__name__)


class StagingWatch:
    """Show how many bytes of the first epoch all workers have staged, and log a staging warning once.

    Args:
        run: the run. Reports of earlier attempts in its directory are removed.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.report = run, run.directory / REPORT
        self._bar: tqdm[Any] | None = None
        self._warned = self._ended = False
        shutil.rmtree(self.report, ignore_errors=True)

    def update(self) -> None:
        """Show new progress and a new warning."""
        if not self.report.is_dir():
            return
        if not self._warned and (self.report / WARNING).is_file():
            self._warned = True
            logger.warning("%s", (self.report / WARNING).read_text(encoding="utf-8").strip())
        if not self._ended and any(self.report.glob("*.json")):
            self._show(*read_progress(self.report))

    def close(self) -> None:
        """Close the progress bar."""
        self._ended = True
        if self._bar is not None:
            self._bar.close()

    def _show(self, num_files: int, num_bytes: int) -> None:
        files = self.run.load_files()
        total = sum(file.size for file in files)
        if self._bar is None:
            self._bar = progress(total, unit="B", what="stage")
        self._bar.set_postfix_str(f"{min(num_files, len(files))} of {len(files)} files", refresh=False)
        self._bar.update(min(num_bytes, total) - self._bar.n)
        if num_bytes >= total:  # The first epoch is staged; staging of later epochs is not shown.
            self.close()

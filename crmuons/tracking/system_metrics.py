"""Sample MLflow's system metrics and write them to the journal."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

from crmuons.tracking.journal import Journal

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAMPLES = 10.0
# The first sample waits this long for the run's own metrics, so that they come first in MLflow's UI.
SECONDS_TO_FIRST_METRIC = 600.0

Monitor = Callable[[], Any]  # MLflow's monitors have no types.
MACHINE: tuple[Monitor, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
GPUS: tuple[Monitor, ...] = (GPUMonitor, ROCMMonitor)


class SystemMetrics(threading.Thread):
    """A thread that samples the system metrics of this machine into a journal.

    MLflow has such a thread too, but it ends at the first error of the server.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(name="system metrics", daemon=True)
        self._journal = journal
        self._ending, self._begun = threading.Event(), threading.Event()
        self._monitors = [*(monitor() for monitor in MACHINE), *_gpu_monitors()]
        earlier = [step for key, step in journal.last_steps.items() if key.startswith("system/")]
        self._step = max(earlier, default=-1) + 1

    def begin(self) -> None:
        """Allow the first sample: the run has logged metrics of its own."""
        self._begun.set()

    def stop(self) -> None:
        """Take the first sample if there was none, and end the thread."""
        self._ending.set()
        self._begun.set()
        self.join()

    def run(self) -> None:
        """Sample until `stop` is called."""
        self._begun.wait(SECONDS_TO_FIRST_METRIC)
        while True:
            try:
                self._journal.append_metrics(dict(self._sample()), self._step)
            except OSError as error:  # Only the run's own entries may stop the run.
                logger.warning("no more system metrics are recorded: %s", error)
                return
            self._step += 1
            if self._ending.wait(SECONDS_BETWEEN_SAMPLES):
                return

    def _sample(self) -> Iterator[tuple[str, float]]:
        for monitor in self._monitors:
            monitor.collect_metrics()
            for name, value in monitor.aggregate_metrics().items():
                yield f"system/{name}", float(value)
            monitor.clear_metrics()


def _gpu_monitors() -> Iterator[Any]:
    for monitor in GPUS:
        try:
            yield monitor()
        except (ImportError, RuntimeError) as error:  # MLflow raises these without such a GPU or its library.
            logger.debug("no system metrics from %s: %s", monitor, error)

"""MLflow's system metrics, journaled like any other metric."""

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

Monitor = Callable[[], Any]  # MLflow's monitors carry no types
MACHINE: tuple[Monitor, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
GPUS: tuple[Monitor, ...] = (GPUMonitor, ROCMMonitor)


class SystemMetrics(threading.Thread):
    """MLflow's system metrics of this machine, through the journal: MLflow's own sender gives up on the first error."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(name="system metrics", daemon=True)
        self._journal = journal
        self._ending = threading.Event()
        self._monitors = [*(monitor() for monitor in MACHINE), *_gpu_monitors()]
        earlier = [step for key, step in journal.last_steps.items() if key.startswith("system/")]
        self._step = max(earlier, default=-1) + 1

    def stop(self) -> None:
        self._ending.set()
        self.join()

    def run(self) -> None:
        while True:
            try:
                self._journal.append_metrics(dict(self._sample()), self._step)
            except OSError as error:  # The run's own entries stop the run; these are a by-product.
                logger.warning("no more system metrics: %s", error)
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
        except (ImportError, RuntimeError) as error:  # How MLflow says that there is no such GPU, or no library for it.
            logger.debug("no system metrics of %s: %s", monitor, error)

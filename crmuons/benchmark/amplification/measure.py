"""Train and judge one model, or judge copies of some showers. Finished measurements are on disk and not repeated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crmuons import config
from crmuons.benchmark.amplification.results import MEASURES
from crmuons.benchmark.amplification.showers import Pool
from crmuons.data.arrow import to_table, write_events
from crmuons.data.selection import Selection, in_split
from crmuons.evaluation.candidates import generated_events
from crmuons.evaluation.comparison import Numbers, classify
from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import classifiers, distances
from crmuons.evaluation.metrics.distances import Estimate, Missing, Number
from crmuons.evaluation.metrics.quantities import Sample
from crmuons.evaluation.reference import Reference, baseline_sets, event_sample
from crmuons.evaluation.report.files import number_as_json
from crmuons.evaluation.tasks import Executor, in_process
from crmuons.generation.load import load_generator
from crmuons.runs.directory import Run
from crmuons.storage import records
from crmuons.storage.atomic import write_json
from crmuons.training.driver import LocalLauncher, run_training

FIXED = ("run.name", "run.storage_path", "run.resume", "run.seed", "data.train", "data.validation", "data.test_share",
         "train.max_seconds", "scaling.num_workers", "scaling.threads_per_worker", "tracking.enabled")  # fmt: skip
REMEDY = "remove it, and the same command measures it again"


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
        out: directory of the results.
        pool: the showers to train on and to copy.
        reference: the truth, in two halves.
        settings: settings of the trainings.
        minutes: duration of each training in minutes.
        threads: number of torch's threads in each training.
    """

    out: Path
    pool: Pool
    reference: Reference
    settings: config.Config
    minutes: float
    threads: int

    def check(self, showers: int, seed: int) -> None:
        """Find out before hours of training whether these showers can be trained on.

        Raises:
            ValueError: if they have no muons, or if none or all of them are for validation.
        """
        events, share = self.pool.first(showers, seed), self.settings.data.validation_share
        if not events.counts.any():
            msg = f"--showers {showers}: none of the showers of seed {seed} has a muon; give larger numbers"
            raise ValueError(msg)
        held_out = in_split(events.ids, Selection("validation", share))
        if not held_out.any() or held_out.all():
            which = "all" if held_out.all() else "none"
            msg = (
                f"--showers {showers}: {which} of the showers of seed {seed} are for validation, with "
                f"data.validation_share={share:g}; give larger numbers, or another share: "
                "--settings data.validation_share=0.2"
            )
            raise ValueError(msg)

    def floor(self) -> Numbers:
        """Return the figures of truth against truth."""
        return self._once(self.out / "figures" / "truth.json", self._truth)

    def copies(self, showers: int, seed: int, name: str) -> Numbers:
        """Return the figures of a baseline (NEAREST or PARAMETRIC) that uses these showers."""

        def measured(executor: Executor) -> Numbers:
            training = executor.put(self.pool.first(showers, seed))
            control = self.reference.control.event_set.headers
            return self._figures(executor, baseline_sets(executor, training, control, seed)[name])

        return self._once(self._file(name.replace(" ", "-"), showers, seed), measured)

    def model(self, showers: int, seed: int) -> Numbers:
        """Return the figures of a model that is trained on these showers.

        Raises:
            KeyboardInterrupt: if the training was interrupted; it continues at the next call.
            RunFailedError: if it stopped.
        """

        def measured(executor: Executor) -> Numbers:
            generator = load_generator(self._train(showers, seed))
            control = self.reference.control.event_set.headers
            events = generated_events(executor, executor.put(generator), control, seed)
            counts = executor.get(events).counts
            headers = EventHeaders(control.ids, control.primaries, counts)
            return self._figures(executor, EventSet(headers, events))

        return self._once(self._file("model", showers, seed), measured)

    def _file(self, name: str, showers: int, seed: int) -> Path:
        return self.out / "figures" / f"{name}-{showers}-showers-seed-{seed}.json"

    def _train(self, showers: int, seed: int) -> Path:
        """Return the directory of the model of the first showers; train it unless an earlier call has done so."""
        name = f"{showers}-showers-seed-{seed}"
        run = Run(self.out / "runs" / name)
        if run.done.is_file():
            return run.model
        data = self.out / "data" / f"{name}.parquet"
        if not data.exists():
            data.parent.mkdir(exist_ok=True)
            write_events(data, [to_table(self.pool.first(showers, seed))])
        values: tuple[Any, ...] = (
            name, str(run.directory.parent), "auto", seed, [str(data)], [], 0.0, 60 * self.minutes, 0, self.threads, False,
        )  # fmt: skip
        # The pool has slant depths already.
        changes = dict(zip(FIXED, values, strict=True)) | {"data.depth": "slant"}
        summary = run_training(config.changed(self.settings, changes), LocalLauncher())
        if summary.outcome != "finished":
            raise KeyboardInterrupt
        return run.model

    def _figures(self, executor: Executor, events: EventSet) -> Numbers:
        """Compare events for the control's primaries with the truth, in the distances and the figures of MEASURES."""
        truth, seed = self.reference.truth, self.reference.plan.seed
        other = event_sample(executor, events, executor.get(self.reference.control.sample).showers)
        numbers = distances.distances(executor.get(truth.sample), executor.get(other.sample))
        scores = classify(executor, truth, other, seed)
        missing = classifiers.too_few(len(truth.event_set), len(events))
        for measure in MEASURES:
            if measure.name not in numbers:
                numbers[measure.name] = missing or classifiers.area_under_curve(executor.get(scores[measure.name]))
        return numbers

    def _truth(self, executor: Executor) -> Numbers:
        """Compare truth with truth; W1/sigma is the mean over random splits of both halves together."""
        truth, control = self.reference.truth, self.reference.control
        pool = Sample.concat([executor.get(truth.sample), executor.get(control.sample)])
        splits = distances.random_splits(pool, self.reference.plan.seed)
        return self._figures(executor, control.event_set) | distances.null_distances(pool, splits)

    def _once(self, file: Path, measure: Callable[[Executor], Numbers]) -> Numbers:
        if not file.exists():
            torch.set_num_threads(self.threads)
            with in_process() as executor:
                numbers = measure(executor)
            file.parent.mkdir(exist_ok=True)
            write_json(file, {name: number_as_json(number) for name, number in numbers.items()})
        content = records.read(file, remedy=REMEDY)
        with records.damage_named(file, REMEDY):
            return {name: _number(entry) for name, entry in content.items()}


def _number(entry: Mapping[str, Any]) -> Number:
    """Return a number from JSON."""
    return Missing(entry["absent"]) if "absent" in entry else Estimate(float(entry["value"]), entry["error"])

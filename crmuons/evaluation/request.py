"""From paths to evaluations: what is read for them, and what has to be said about where it came from."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from crmuons import config
from crmuons.data import manifest
from crmuons.data.quarantine import ReadCounts
from crmuons.data.selection import Selection, Split, in_split, training_selection
from crmuons.evaluation import pairing
from crmuons.evaluation.candidates import data_candidate, model_candidate
from crmuons.evaluation.datasets import BlockedEvents, read
from crmuons.evaluation.evaluate import Evaluation, evaluate
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.reference import EvaluationSettings, Reference, prepare_reference
from crmuons.evaluation.tasks import Executor
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import load_generator
from crmuons.storage import files
from crmuons.storage.files import File

logger = logging.getLogger(__name__)

TRAINING_EVENTS = 200_000  # For the rivals: enough for a nearest primary to be near, and read in seconds.

Depth = Literal["slant", "vertical"]


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be evaluated.

    Attributes:
        truth: paths, directories, globs or URLs of true events.
        split: which showers of them.
        models: runs, checkpoints or model directories; none if `generated` is given.
        generated: events of the same contract, in place of models.
        training: events for the rivals; empty for those that the model was trained on, or the training split of `truth`.
        depth: what the true files' depth_m is; None for what it was in the model's training, slant for a data set.
        settings: sizes and seed.
    """

    truth: Sequence[str]
    split: Split = "test"
    models: Sequence[str] = ()
    generated: Sequence[str] = ()
    training: Sequence[str] = ()
    depth: Depth | None = None
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        if bool(self.models) == bool(self.generated):
            msg = "give either models or generated events to evaluate, one of the two"
            raise ValueError(msg)


@dataclass(frozen=True)
class LoadedData:
    """What was read.

    Attributes:
        truth, training: events; the training events may be none.
        tally: what became of the rows of the true files.
        warnings: what is to be said about them.
    """

    truth: BlockedEvents
    training: BlockedEvents
    tally: ReadCounts
    warnings: list[str]


def evaluate_request(request: EvaluationRequest, pieces: Executor) -> Iterator[Evaluation]:
    """Read the events once, then evaluate one model after the other, or the data set.

    Raises:
        FileNotFoundError: if data or a model are not there.
        ValueError: if data are not events, there are none, or they are too few to be cut in two.
    """
    if request.generated:
        yield _evaluate_data(request, pieces)
        return
    generators = [load_generator(model) for model in request.models]  # All: one that is missing is said at once.
    references: dict[str, tuple[LoadedData, Reference]] = {}
    for name, generator in zip(request.models, generators, strict=True):
        data = _data_settings(request, generator)
        key = f"{_selection(data, request.split)} {data.train}"
        if key not in references:
            given = _read(request, data, pieces)
            halves = pairing.halve(given.truth.outline, request.settings.max_events, request.settings.seed)
            references[key] = given, prepare_reference(pieces, given.truth, given.training, request.settings, halves)
        given, reference = references[key]
        result = evaluate(pieces, reference, model_candidate(pieces, reference, generator))
        about = {
            "candidate": name,
            "model_step": generator.metadata.get("step"),
            "model_written": generator.metadata.get("written"),
        }
        yield _describe(result, request, given, about, _training_warnings(request, data, given.truth.outline))


def _evaluate_data(request: EvaluationRequest, pieces: Executor) -> Evaluation:
    data = _data_settings(request, None)
    given = _read(request, data, pieces)
    generated = _read_generated(request, data, given.truth.outline, pieces)
    settings = request.settings
    pairs = pairing.pair_data(given.truth.outline, generated.outline, settings.max_events, settings.seed)
    reference = prepare_reference(pieces, given.truth, given.training, settings, (pairs.truth, pairs.control))
    result = evaluate(pieces, reference, data_candidate(pieces, reference, given.truth, generated, pairs))
    return _describe(result, request, given, {"candidate": ", ".join(request.generated)}, [])


def _describe(
    result: Evaluation, request: EvaluationRequest, given: LoadedData, about: dict[str, object], warnings: list[str]
) -> Evaluation:
    about |= {"truth": f"{', '.join(request.truth)} ({request.split} split)", "rows_read": given.tally.rows}
    return Evaluation(
        about | result.about,
        warnings + given.warnings + result.warnings,
        result.numbers,
        result.breakdown,
        result.calibration,
        result.shown,
    )


def _data_settings(request: EvaluationRequest, model: BundleGenerator | None) -> config.Data:
    """How the model's training read its data; the defaults for data sets."""
    settings = {} if model is None else model.metadata.get("config", {}).get("data", {})
    depth = {} if request.depth is None else {"depth": request.depth}
    return config.Data.model_validate(settings | depth)


def _selection(data: config.Data, split: Split) -> Selection:
    vertical = data.depth == "vertical"
    return Selection(split, data.validation_share, data.test_share, vertical_depth=vertical)


def _read(request: EvaluationRequest, data: config.Data, pieces: Executor) -> LoadedData:
    """The true events, and the training events for the rivals."""
    wanted = (_selection(data, request.split), 2 * request.settings.max_events)
    for_rivals, seed = (_selection(data, "train"), TRAINING_EVENTS), request.settings.seed
    training_files, warnings = _training_files(request, data)
    if training_files:
        (truth,), tally = read(pieces, request.truth, [wanted], seed)
        of_training: Split = "all" if request.training else "train"
        (training,), _ = read(pieces, training_files, [(_selection(data, of_training), TRAINING_EVENTS)], seed)
    else:
        (truth, training), tally = read(pieces, request.truth, [wanted, for_rivals], seed)
    if not len(truth):
        msg = (
            f"no true events in the {request.split} split of {', '.join(request.truth)} ({tally.rows} rows read, "
            f"{tally.quarantined} of them unusable); --split says which part of the showers is wanted, all takes every event"
        )
        raise ValueError(msg)
    logger.info("%d true events, %d training events for the rivals", len(truth), len(training))
    if tally.quarantined:
        warnings.append(
            f"{tally.quarantined} of {tally.rows} rows of the true files cannot be used and were left out; the log says why"
        )
    return LoadedData(truth, training, tally, warnings)


def _training_files(request: EvaluationRequest, data: config.Data) -> tuple[Sequence[str], list[str]]:
    """The files of training events that are not among the true ones; none to take the true files' training split."""
    if request.training or not data.train or sorted(data.train) == sorted(request.truth):
        return request.training, []
    try:
        files.list_files(data.train)
    except (OSError, ValueError) as error:
        return (), [f"the rivals learn from the training split of the true files: {error}"]
    return data.train, []


def _read_generated(
    request: EvaluationRequest, data: config.Data, truth: EventHeaders, pieces: Executor
) -> BlockedEvents:
    """Generated events: of the truth's split where they have its primaries, any otherwise."""
    limit, slant = 2 * request.settings.max_events, data.model_copy(update={"depth": "slant"})
    # Generated events are written with slant depths.
    wanted = [(_selection(slant, split), limit) for split in (request.split, "all")]
    (same_split, any_split), _ = read(pieces, request.generated, wanted, request.settings.seed)
    return same_split if pairing.share_primaries(truth, same_split.outline) else any_split


def _training_warnings(request: EvaluationRequest, data: config.Data, truth: EventHeaders) -> list[str]:
    """Whether the model was trained on what it is held against."""
    trained = in_split(truth.ids, training_selection(data, None))
    if not trained.any():
        return []
    try:
        of_training, of_truth = (
            {_name(file) for file in manifest.origins(urls)} for urls in (data.train, request.truth)
        )
    except FileNotFoundError as error:
        return [f"whether the model was trained on these events cannot be told: {error}"]
    if not of_training & of_truth:
        return []
    warning = (
        f"{int(trained.sum())} of {len(trained)} true events belong to showers that the model was trained on (split "
        f"'{request.split}'): what follows says how well it fits, not how well it generalises; use --split test"
    )
    return [warning]


def _name(file: File) -> tuple[str, int]:
    """What a file keeps when it is moved."""
    return PurePath(file.url).name, file.size

"""Carry out an evaluation request: read the events, evaluate each model or the data set, warn about unsuitable data."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Literal

from crmuons import config
from crmuons.config.options import SampleEvents
from crmuons.data import manifest
from crmuons.data.features import BASE, MuonFeature
from crmuons.data.inspection import declaration
from crmuons.data.quarantine import ReadCounts
from crmuons.data.selection import Selection, Split, in_split, training_selection
from crmuons.evaluation import pairing
from crmuons.evaluation.candidates import data_candidate, model_candidate, refuse_copies
from crmuons.evaluation.datasets import BlockedEvents, read
from crmuons.evaluation.evaluate import Evaluation, evaluate
from crmuons.evaluation.hard_cells.judge import CellReference, judge_data, judge_model, prepare_cells
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.members import evaluate_members
from crmuons.evaluation.reference import EvaluationSettings, Reference, prepare_reference
from crmuons.evaluation.tasks import Executor
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import load_generator
from crmuons.storage import files
from crmuons.storage.files import File
from crmuons.tracking.logged_models import local_place

logger = logging.getLogger(__name__)

TRAINING_EVENTS = 200_000  # Events for the baselines: the nearest primary is then close, and reading takes seconds.

Depth = Literal["slant", "vertical"]


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        truth: paths, directories, globs or URLs of true events.
        split: the part of the true showers to use.
        models: runs, checkpoints or model directories; empty if `generated` is given.
        generated: generated events of the same format, instead of models.
        training: events for the baselines; if empty, the model's training events, or the training split of `truth`.
        depth: the meaning of depth_m in the true files; None for the meaning in the model's training, or slant for a
            data set.
        settings: size and seed.
        hard_cells: number of events of each hard cell to look for in all of the truth; None leaves this out.

    Raises:
        ValueError: if both or neither of `models` and `generated` are given.
    """

    truth: Sequence[str]
    split: Split = "test"
    models: Sequence[str] = ()
    generated: Sequence[str] = ()
    training: Sequence[str] = ()
    depth: Depth | None = None
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    hard_cells: SampleEvents | None = None

    def __post_init__(self) -> None:
        if bool(self.models) == bool(self.generated):
            msg = "give either models or generated events to evaluate, not both"
            raise ValueError(msg)


@dataclass(frozen=True)
class LoadedData:
    """The events that were read.

    Attributes:
        truth: true events.
        training: training events; may be empty.
        counts: read counts of the rows of the true files.
        warnings: warnings about the data.
    """

    truth: BlockedEvents
    training: BlockedEvents
    counts: ReadCounts
    warnings: list[str]


def evaluate_request(request: EvaluationRequest, executor: Executor) -> Iterator[Evaluation]:
    """Evaluate one model after the other, or the data set. Models with the same data settings share what is read.

    Raises:
        FileNotFoundError: if data or a model are missing.
        ValueError: if files do not hold events, or there are too few events to split in two.
    """
    if request.generated:
        yield _evaluate_data(request, executor)
        return
    # All models are loaded first, so that a missing model is an early error.
    generators = [load_generator(local_place(model)) for model in request.models]
    references: dict[str, tuple[LoadedData, Reference, CellReference | None]] = {}
    for name, generator in zip(request.models, generators, strict=True):
        data = _data_settings(request, generator)
        further, lacking = _in_both(_declared(request.truth), generator.model.features.extra)
        key = f"{_selection(data, request.split, further)} {data.train}"
        if key not in references:
            loaded = _read(request, data, executor, further)
            halves = pairing.halve(loaded.truth.headers, request.settings.max_events, request.settings.seed)
            reference = prepare_reference(
                executor, loaded.truth, loaded.training, request.settings, halves, further=further
            )
            selection = _selection(data, request.split, ())
            references[key] = loaded, reference, _cell_reference(executor, request, reference, loaded, selection)
        loaded, reference, cells = references[key]
        result = evaluate(executor, reference, model_candidate(executor, reference, generator))
        result = replace(result, members=evaluate_members(executor, reference, generator))
        if cells is not None:
            result = replace(result, hard_cells=judge_model(executor, cells, executor.put(generator)))
        about = {
            "candidate": name,
            "model_step": generator.metadata.get("step"),
            "model_written": generator.metadata.get("written"),
        }
        about_data = lacking + _training_warnings(request, data, loaded.truth.headers)
        yield _describe(result, request, loaded, about, about_data)


def _evaluate_data(request: EvaluationRequest, executor: Executor) -> Evaluation:
    data = _data_settings(request, None)
    further, lacking = _in_both(_declared(request.truth), _declared(request.generated))
    loaded = _read(request, data, executor, further)
    generated = _read_generated(request, data, loaded.truth.headers, executor, further)
    settings = request.settings
    pairs = pairing.pair_data(loaded.truth.headers, generated.headers, settings.max_events, settings.seed)
    refuse_copies(executor, loaded.truth, generated, pairs)
    halves = pairs.truth, pairs.control
    reference = prepare_reference(executor, loaded.truth, loaded.training, settings, halves, further=further)
    result = evaluate(executor, reference, data_candidate(executor, reference, loaded.truth, generated, pairs))
    cells = _cell_reference(executor, request, reference, loaded, _selection(data, request.split, ()))
    if cells is not None:
        # The generated rows must be of the same split as in `_read_generated`.
        shared = pairing.share_primaries(loaded.truth.headers, generated.headers)
        split = request.split if shared else "all"
        slant = _selection(data.model_copy(update={"depth": "slant"}), split, ())
        result = replace(result, hard_cells=judge_data(executor, cells, request.generated, slant, shared=shared))
    return _describe(result, request, loaded, {"candidate": ", ".join(request.generated)}, lacking)


def _cell_reference(
    executor: Executor, request: EvaluationRequest, reference: Reference, loaded: LoadedData, selection: Selection
) -> CellReference | None:
    """Search all of the truth for events of the hard cells, if the request asks for them."""
    if request.hard_cells is None:
        return None
    primaries = loaded.training.headers.primaries
    return prepare_cells(executor, reference, (request.truth, selection), primaries, request.hard_cells)


def _declared(urls: Sequence[str]) -> tuple[MuonFeature, ...]:
    """Return the further features that the first of the files declares."""
    return declaration(manifest.event_files(urls)[0])[1][len(BASE) :]


def _in_both(true: Sequence[MuonFeature], made: Sequence[MuonFeature]) -> tuple[tuple[MuonFeature, ...], list[str]]:
    """Return the features that both true and generated muons have, and a warning that names the other features."""
    both = tuple(feature for feature in true if feature in made)
    single = [feature.name for feature in (*true, *made) if feature not in both]
    if not single:
        return both, []
    names = ", ".join(dict.fromkeys(single))
    return both, [f"not compared, because only the true or only the generated muons have it: {names}"]


def _describe(
    result: Evaluation, request: EvaluationRequest, loaded: LoadedData, about: dict[str, object], warnings: list[str]
) -> Evaluation:
    """Add what was read, and the warnings about it."""
    about |= {"truth": f"{', '.join(request.truth)} ({request.split} split)", "rows_read": loaded.counts.rows}
    return replace(result, about=about | result.about, warnings=warnings + loaded.warnings + result.warnings)


def _data_settings(request: EvaluationRequest, model: BundleGenerator | None) -> config.Data:
    """Return the data settings of the model's training, or the defaults for a data set."""
    settings = {} if model is None else model.metadata.get("config", {}).get("data", {})
    depth = {} if request.depth is None else {"depth": request.depth}
    return config.Data.model_validate(settings | depth)


def _selection(data: config.Data, split: Split, further: tuple[MuonFeature, ...]) -> Selection:
    vertical = data.depth == "vertical"
    return Selection(
        split, data.validation_share, data.test_share, vertical_depth=vertical, features=further, fold=data.fold
    )


def _read(
    request: EvaluationRequest, data: config.Data, executor: Executor, further: tuple[MuonFeature, ...]
) -> LoadedData:
    """Read the true events, and the training events for the baselines."""
    of_truth = _selection(data, request.split, further), 2 * request.settings.max_events
    seed = request.settings.seed
    training_files, warnings = _training_files(request, data)
    if training_files:
        (truth,), counts = read(executor, request.truth, [of_truth], seed)
        split: Split = "all" if request.training else "train"
        (training,), _ = read(executor, training_files, [(_selection(data, split, further), TRAINING_EVENTS)], seed)
    else:
        of_training = (_selection(data, "train", further), TRAINING_EVENTS)
        (truth, training), counts = read(executor, request.truth, [of_truth, of_training], seed)
    if not len(truth):
        msg = (
            f"no true events in the {request.split} split of {', '.join(request.truth)} ({counts.rows} rows read, "
            f"{counts.quarantined} of them unusable); --split says which showers to use; --split all uses all"
        )
        raise ValueError(msg)
    logger.info("%d true events, %d training events for the baselines", len(truth), len(training))
    if counts.quarantined:
        warnings.append(
            f"{counts.quarantined} of {counts.rows} rows of the true files are unusable and left out; the log says why"
        )
    return LoadedData(truth, training, counts, warnings)


def _training_files(request: EvaluationRequest, data: config.Data) -> tuple[Sequence[str], list[str]]:
    """Return the training files if they differ from the true files; empty to use the true files' training split."""
    if request.training or not data.train or sorted(data.train) == sorted(request.truth):
        return request.training, []
    try:
        files.list_files(data.train)
    except (OSError, ValueError) as error:
        return (), [f"the baselines were fitted to the training split of the true files: {error}"]
    return data.train, []


def _read_generated(
    request: EvaluationRequest,
    data: config.Data,
    truth: EventHeaders,
    executor: Executor,
    further: tuple[MuonFeature, ...],
) -> BlockedEvents:
    """Read generated events: only the truth's split if they have the truth's primaries, otherwise all events."""
    limit, slant = 2 * request.settings.max_events, data.model_copy(update={"depth": "slant"})
    # Files of generated events always hold slant depths.
    selections = [(_selection(slant, split, further), limit) for split in (request.split, "all")]
    (same_split, any_split), _ = read(executor, request.generated, selections, request.settings.seed)
    return same_split if pairing.share_primaries(truth, same_split.headers) else any_split


def _training_warnings(request: EvaluationRequest, data: config.Data, truth: EventHeaders) -> list[str]:
    """Return a warning if the model was trained on the true events."""
    trained = in_split(truth.ids, training_selection(data, None))
    if not trained.any():
        return []
    try:
        training_names, true_names = (
            {_name_and_size(file) for file in manifest.origins(urls)} for urls in (data.train, request.truth)
        )
    except FileNotFoundError as error:
        return [f"it is unknown whether the model was trained on these events: {error}"]
    if not training_names & true_names:
        return []
    warning = (
        f"{int(trained.sum())} of {len(trained)} true events belong to showers that the model was trained on (split "
        f"'{request.split}'): the figures say how well it fits, not how well it generalises; use --split test"
    )
    return [warning]


def _name_and_size(file: File) -> tuple[str, int]:
    """Return what stays the same when a file is moved."""
    return PurePath(file.url).name, file.size

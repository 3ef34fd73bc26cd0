"""From paths to an evaluation: what is read for it, and what has to be said about where it came from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from crmuons import config, files
from crmuons.evaluation import pairing
from crmuons.evaluation.protocol import Evaluation, Settings, evaluate
from crmuons.generate import BundleGenerator, load_generator
from crmuons.reader import Selection, Split, in_split, sample_events
from crmuons.schema import EventArrays
from crmuons.stream import training_selection

logger = logging.getLogger(__name__)

TRAINING_EVENTS = 200_000  # For the rivals: enough for a nearest primary to be near, and read in seconds.
ADVISED_EVENTS = 20_000


@dataclass(frozen=True)
class Request:
    """What is to be evaluated.

    Attributes:
        truth: paths, directories, globs or URLs of true events.
        split: which showers of them.
        model: a run, a checkpoint or a model directory; None if `generated` is given.
        generated: events of the same contract, in place of a model.
        training: events for the rivals; empty for the training split of `truth`.
        settings: sizes and seed.
    """

    truth: Sequence[str]
    split: Split = "test"
    model: str | None = None
    generated: Sequence[str] = ()
    training: Sequence[str] = ()
    settings: Settings = field(default_factory=Settings)


def evaluate_request(request: Request) -> Evaluation:
    """Read the events, load the model, run the protocol.

    Raises:
        FileNotFoundError: if data or model are not there.
        ValueError: if neither or both of model and generated events are given, or the data are not events.
    """
    if (request.model is None) == (not request.generated):
        msg = "give either a model or generated events to evaluate, one of the two"
        raise ValueError(msg)
    model = None if request.model is None else load_generator(request.model)
    data = _data_settings(model)
    truth, training = _read_truth(request, data)
    if not len(truth.counts):
        msg = (
            f"no true events in the {request.split} split of {', '.join(request.truth)}; --split all takes every event"
        )
        raise ValueError(msg)
    candidate = _read_generated(request, data, truth) if model is None else model
    result = evaluate(truth, candidate, training, request.settings)
    about = {
        "candidate": request.model if request.model is not None else ", ".join(request.generated),
        "truth": f"{', '.join(request.truth)} ({request.split} split)",
        **(
            {}
            if model is None
            else {"model_step": model.about.get("step"), "model_written": model.about.get("written")}
        ),
    }
    warnings = [] if model is None else _training_warnings(request, data, truth)
    return Evaluation(
        about | result.about,
        warnings + _size_warnings(result) + result.warnings,
        result.numbers,
        result.breakdown,
        result.calibration,
        result.sides,
    )


def _data_settings(model: BundleGenerator | None) -> config.Data:
    """How the model's training read its data; the defaults for data sets."""
    settings = {} if model is None else model.about.get("config", {}).get("data", {})
    return config.Data.model_validate(settings)


def _selection(data: config.Data, split: Split) -> Selection:
    vertical = data.depth == "vertical"
    return Selection(split, data.validation_share, data.test_share, vertical_depth=vertical)


def _read_truth(request: Request, data: config.Data) -> tuple[EventArrays, EventArrays]:
    """The true events, and the training events for the rivals."""
    wanted = (_selection(data, request.split), 2 * request.settings.max_events)
    if request.training:
        (truth,), _ = sample_events(request.truth, [wanted], request.settings.seed)
        (training,), _ = sample_events(request.training, [(_selection(data, "all"), TRAINING_EVENTS)])
    else:
        both = [wanted, (_selection(data, "train"), TRAINING_EVENTS)]
        (truth, training), _ = sample_events(request.truth, both, request.settings.seed)
    logger.info("%d true events, %d training events for the rivals", len(truth.counts), len(training.counts))
    return truth, training


def _read_generated(request: Request, data: config.Data, truth: EventArrays) -> EventArrays:
    """Generated events: of the truth's split where they have its primaries, any otherwise."""
    limit = 2 * request.settings.max_events
    # Generated events are written with slant depths.
    wanted = [(_selection(data, split), limit) for split in (request.split, "all")]
    (same_split, any_split), _ = sample_events(request.generated, wanted, request.settings.seed)
    return same_split if pairing.share_primaries(truth, same_split) else any_split


def _training_warnings(request: Request, data: config.Data, truth: EventArrays) -> list[str]:
    """Whether the model was trained on what it is held against."""
    trained = in_split(truth.ids, training_selection(data, None))
    if not trained.any():
        return []
    try:
        of_training, of_truth = (
            {_name(file) for file in files.list_files(urls)} for urls in (data.train, request.truth)
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


def _name(file: files.File) -> tuple[str, int]:
    """What a file keeps when it is moved."""
    return PurePath(file.url).name, file.size


def _size_warnings(result: Evaluation) -> list[str]:
    events = len(result.sides.truth.counts)
    if events >= ADVISED_EVENTS:
        return []
    showers = len(np.unique(result.sides.truth.ids, axis=0))
    warning = (
        f"{events} events ({showers} showers) a side could be compared, which takes twice as many true ones: the floor is "
        f"high, and what lies below it is not seen; {ADVISED_EVENTS:,} or more a side are advised"
    )
    return [warning]

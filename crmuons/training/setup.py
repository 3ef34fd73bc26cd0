"""Set up a run: list its files, read a sample of their events and fit the features. Bad data stop the run here."""

import io
import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np

from crmuons import config
from crmuons.data import manifest, reader, recorded, schema
from crmuons.data.events import EventArrays
from crmuons.data.parquet import open_parquet
from crmuons.data.plausibility import doubts
from crmuons.data.quarantine import ReadCounts
from crmuons.data.sample import sample_events
from crmuons.data.selection import Selection, training_selection
from crmuons.evaluation.metrics import distances
from crmuons.models.bundles import check_finite
from crmuons.models.features import Features
from crmuons.models.saved_model import read_tensors
from crmuons.runs import location
from crmuons.storage.files import File
from crmuons.storage.identity import Digests, open_listed, with_digests
from crmuons.storage.records import damage_named
from crmuons.storage.redact import refuse_secrets

logger = logging.getLogger(__name__)

FEW_SHOWERS = 100  # If fewer showers validate the model, a warning says so.
LARGEST_SHARE = 0.25  # The warning proposes no larger share: it would take too many showers from the training.
NORMAL_W1 = 1.8  # W1 of two samples of n normal values is this over sqrt(n), in sigma (docs/metrics.md).
FEATURE_EVENTS = 100_000  # Size of the sample on which the features are fitted.


def refuse_credentials(settings: config.Config) -> None:
    """Refuse URLs with credentials, because settings are stored with the run, in checkpoints and in MLflow.

    Raises:
        ValueError: if a URL carries a password or a token, or if data.staging.dir is a URL.
    """
    for value in settings.flat().values():
        refuse_secrets(str(value))
    place = settings.data.staging.dir
    # Errors of reading the settings show whole values, so this is checked here.
    if place is not None and "://" in place:
        msg = f"data.staging.dir: '{place}' is a URL; give a directory of each node's own disk"
        raise ValueError(msg)


def set_up_run(settings: config.Config) -> tuple[list[File], Features, EventArrays]:
    """List the files, read a sample of the events and fit the features. Nothing is written.

    Returns:
        The training files, the features, and the validation events.

    Raises:
        FileNotFoundError, ValueError: if the data cannot be used; the message names the fault.
    """
    data = settings.data
    if not data.train:
        msg = "data.train is not set: give files, a directory, a glob or a URL of event Parquet"
        raise ValueError(msg)
    train = training_selection(data, None)
    if train.staging is not None:
        train.staging.check()
        train = replace(train, staging=train.staging.without_eviction())
    listed = _list_files(data, train)
    validation_files = manifest.event_files(data.validation) if data.validation else []
    # Only files of the same size can be copies, so other files need no digest before they are read.
    common_sizes = {file.size for file in listed} & {file.size for file in validation_files}
    validation_files = with_digests(validation_files, common_sizes)
    listed = with_digests(listed, common_sizes)
    _warn_if_overlapping(listed, validation_files)
    _warn_if_without_ids(listed, train)
    common: dict[str, Any] = {"vertical_depth": train.vertical_depth, "features": train.features, "fold": data.fold}
    held_out = Selection("validation", data.validation_share, data.test_share, **common)
    held_out_requests = [] if data.validation else [(held_out, settings.train.validation_events)]
    limit = data.max_quarantined_share
    # A prepared shard holds events of one split, so the validation events are in other shards than the listed ones.
    source_files = manifest.event_files(data.train) if any(map(manifest.is_shard, listed)) else listed
    opened = Digests()
    (sample, *rest), read = sample_events(
        source_files, [(train, FEATURE_EVENTS), *held_out_requests], max_quarantined_share=limit, digests=opened
    )
    listed = [opened.of(file) for file in listed]
    if data.validation:
        every = Selection(**common)
        requests = [(every, settings.train.validation_events)]
        rest, validation_read = sample_events(validation_files, requests, max_quarantined_share=limit)
        read += validation_read
    (validation,) = rest
    for doubt in doubts(sample):
        logger.warning("data.train: %s", doubt)
    _check_sample(read, len(sample.counts), len(validation.counts), data)
    if missing := distances.unscored(validation):
        logger.warning(
            "the %d validation events cannot score a model (%s): %s, and the last checkpoint will be selected",
            len(validation.counts),
            distances.describe_missing(missing),
            _remedy(validation, settings),
        )
    else:
        _say_if_few_showers(sample, validation, settings)
    features = _features(listed, sample, train, cartesian=settings.model.kind == "predecessor")
    if len(sample.counts) < FEATURE_EVENTS:  # Otherwise the data may have more showers than the sample.
        features.training_showers = len(np.unique(sample.ids, axis=0))
    return listed, features, validation


def _remedy(validation: EventArrays, settings: config.Config) -> str:
    """Return the remedy for a run with too few validation events to score its models."""
    needed = distances.events_for_score(validation)
    if needed is None:
        return "give validation events in data.validation that have these quantities, and different values of them"
    number = f"a score needs about {needed} events like these"
    if len(validation.counts) >= settings.train.validation_events:
        return f"{number}; set train.validation_events={needed} or more"
    return f"{number}; give more in data.validation, or a larger data.validation_share"


def _say_if_few_showers(sample: EventArrays, validation: EventArrays, settings: config.Config) -> None:
    """Log how many showers select the model if they are few, and how to hold back more."""
    trained, held_out = (len(np.unique(events.ids, axis=0)) for events in (sample, validation))
    if held_out >= FEW_SHOWERS or len(validation.counts) >= settings.train.validation_events:
        return
    share = FEW_SHOWERS * (1 - settings.data.test_share) / (trained + held_out)
    if settings.data.validation:
        remedy = "give more showers in data.validation"
    elif share <= LARGEST_SHARE:
        remedy = f"data.validation_share={math.ceil(100 * share) / 100:g} holds back about {FEW_SHOWERS}"
    else:
        remedy = f"more would leave too few of {trained + held_out} to train on; give others in data.validation"
    logger.warning(
        "the score that selects the model comes from %d showers (%d events), so chance alone gives about %.2f sigma; %s",
        held_out,
        len(validation.counts),
        NORMAL_W1 / math.sqrt(held_out),
        remedy,
    )


def _warn_if_overlapping(train: list[File], validation: list[File]) -> None:
    of_train, of_validation = manifest.sources_of(train), manifest.sources_of(validation)
    common = recorded.overlap([*train, *of_train], validation) or recorded.overlap(train, of_validation)
    if common:
        logger.warning(
            "%d files of data.validation are also in data.train, the first is %s: the score will say how well "
            "the model fits its training events, not how well it generalises; give other files, or leave data.validation out "
            "to hold back showers of data.train",
            len(common),
            common[0].url,
        )


def _warn_if_without_ids(listed: list[File], train: Selection) -> None:
    for file in listed:
        if manifest.is_shard(file):
            return
        try:
            with open_listed(file) as opened, open_parquet(opened, file.url) as rows:
                has_ids = schema.check_schema(rows.schema_arrow, file.url)
        except reader.UNUSABLE:
            if not train.skip_missing:
                raise
        else:
            break
    else:
        return
    if not has_ids:
        logger.warning(
            "%s has no shower ids: every row counts as its own shower, so events of one shower may be in "
            "different splits",
            file.url,
        )


def _list_files(data: config.Data, train: Selection) -> list[File]:
    try:
        listed = manifest.event_files(data.train, train.bounds)
    except FileNotFoundError as error:
        if not location.in_ray_job():
            raise
        msg = (
            f"{error}; a Ray job runs in a copy of its working directory without the files that git ignores; "
            "give absolute paths, which all nodes can read"
        )
        raise FileNotFoundError(msg) from error
    if not listed:
        msg = f"{', '.join(data.train)} was prepared without showers of the training split; set data.test_share lower"
        raise ValueError(msg)
    if data.depth == "vertical" and any(map(manifest.is_shard, listed)):
        msg = (
            f"data.depth=vertical is for raw files, but {', '.join(data.train)} holds prepared shards, whose "
            "depths are slant; `crmuons prepare --vertical` converts them"
        )
        raise ValueError(msg)
    return listed


def _features(listed: list[File], sample: EventArrays, train: Selection, *, cartesian: bool) -> Features:
    """Return the features stored with prepared data if they match the training events; fit the sample otherwise."""
    features = Features(cartesian=cartesian, extra=train.features)
    content = manifest.features_of(listed, train.bounds) if train.max_muons is None else None
    if content is None:
        return features.fit(sample)
    state = read_tensors(io.BytesIO(content), manifest.FEATURES)
    with damage_named(manifest.FEATURES, "prepare the data again"):
        stored = Features.of_state(state, cartesian=cartesian)
        ways = stored.layout.scaled == features.layout.scaled and stored.drawn == features.drawn
        if stored.extra != features.extra or not ways:
            return features.fit(sample)
        features = stored
        features.load_state_dict(state)
        check_finite(state, manifest.FEATURES)
    return features


def _check_sample(read: ReadCounts, train: int, validation: int, data: config.Data) -> None:
    if not read.rows:
        msg = f"the files at {', '.join(data.train)} have no rows; give others in data.train"
        raise ValueError(msg)
    if not train or not validation:
        msg = (
            f"{read.rows} rows gave {train} training and {validation} validation events; give more data, or set "
            "data.validation_share and data.test_share"
        )
        raise ValueError(msg)

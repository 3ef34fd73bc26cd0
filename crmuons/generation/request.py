"""The request of a generated data set, and the directory that it claims.

A GenerationRequest holds everything that determines the content of the shards. It is saved with them as _request.json;
another run into the same directory must have the same request.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from crmuons.config.options import Counts, Events, Muons, Seed, check
from crmuons.data import schema
from crmuons.generation.generator import BundleGenerator, check_counts
from crmuons.generation.load import model_digest
from crmuons.generation.primaries import Primaries, PrimarySource
from crmuons.generation.request_file import REQUEST_FILE, find_request
from crmuons.generation.spectrum import Spectrum
from crmuons.generation.weights import FluxWeights
from crmuons.models import blocks
from crmuons.storage import records
from crmuons.storage.differences import differences
from crmuons.storage.output import Output

logger = logging.getLogger(__name__)

OUTSIDE_COLUMN = "outside_training"  # A column in addition to the contract's.
MUONS_PER_SHARD = 2**21  # About 25 MB, and 2 s on one core.
MAX_EVENTS_PER_SHARD = 2**18
SAMPLE_EVERY = 64  # N of every 64th event is drawn to estimate the mean.


@dataclass(frozen=True)
class GenerationOptions:
    """The user's options, except model and primaries.

    Attributes:
        seed: seed of the random numbers.
        counts: source of N: "predict" draws it, "column" reads it with the primaries, a number applies to all events.
        max_muons_per_event: cap on the muons of an event; the drawn N is kept in DRAWN_COLUMN.
        strict: refuse primaries outside the trained range.
        events_per_shard: a multiple of the device's EVENTS_PER_BLOCK; None chooses it for about MUONS_PER_SHARD muons.
        device: "cpu" or "cuda"; they draw different random numbers.
        weight: a flux of simweights, for the column `weight_hz`; only for primaries of a spectrum.
    """

    seed: Seed = 0
    counts: Counts = "predict"
    max_muons_per_event: Muons | None = None
    strict: bool = False
    events_per_shard: Events | None = None
    device: str = "cpu"
    weight: str | None = None

    def __post_init__(self) -> None:
        check(self)
        size = self.events_per_shard
        block = blocks.EVENTS_PER_BLOCK[self.device]
        _require(
            size is None or (size > 0 and size % block == 0),
            f"--events-per-shard {size}: expected a multiple of {block}",
        )


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that determines the content of the shards. Equal requests give equal shards, to the last bit.

    Attributes:
        model: digest of the weights.
        primaries: digest of the primaries' values, ids and counts.
        num_events: events of the whole data set.
        weight: the flux, and the spectrum of the primaries; None without weights.
    """

    model: str
    primaries: str
    num_events: int
    seed: int
    counts: Counts
    max_muons_per_event: int | None
    events_per_shard: int
    device: str
    weight: dict[str, Any] | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Return the request as _request.json holds it. Without weights it is the same as in earlier versions."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # Tuples become lists.
        return {name: value for name, value in values.items() if name != "weight" or value is not None}

    @property
    def num_shards(self) -> int:
        return -(-self.num_events // self.events_per_shard)

    @property
    def digest(self) -> str:
        return _sha256(json.dumps(self.record, sort_keys=True).encode())

    def shard(self, number: int) -> str:
        """Return the file name of a shard."""
        return f"events-{number:05d}.parquet"


def with_previous_shard_size(out: Output, options: GenerationOptions) -> GenerationOptions:
    """Return the options with the shard size of an earlier run into the directory, unless they set one."""
    if options.events_per_shard is None and (stored := find_request(out)) is not None:
        earlier = _read_request(out.of(stored))
        if earlier.get("device") == options.device:
            return replace(options, events_per_shard=earlier["events_per_shard"])
    return options


def scan_primaries(
    generator: BundleGenerator, source: PrimarySource, options: GenerationOptions
) -> tuple[GenerationRequest, float]:
    """Read all primaries once. Return the request and an estimate of the mean N.

    Raises:
        ValueError: if there are no primaries, or one is out of range (with `strict`, outside the trained range).
    """
    _check_weight(source, options)
    seen, outside, sampled, muons = 0, 0, 0, 0.0
    content = hashlib.sha256()
    values_outside: dict[str, list[float]] = {}
    for primaries in source:
        for array in (primaries.ids, primaries.values, primaries.counts):
            content.update(b"" if array is None else array.tobytes())
        beyond = generator.outside_training(primaries.values)
        _add_outside(values_outside, generator, primaries.values[beyond])
        outside += int(beyond.sum())
        sample = _sample_counts(generator, primaries, options)
        sampled, muons = sampled + len(sample), muons + float(sample.sum())
        seen += len(primaries)
    _require(seen > 0, "the primaries have no rows; give at least one primary")
    _report_outside(generator, options, f"{outside} of {seen}", values_outside)
    mean = muons / sampled
    request = GenerationRequest(
        model=model_digest(generator),
        primaries=content.hexdigest()[:16],
        num_events=seen,
        seed=options.seed,
        counts=options.counts,
        max_muons_per_event=options.max_muons_per_event,
        events_per_shard=options.events_per_shard
        or _events_per_shard(mean, blocks.EVENTS_PER_BLOCK[options.device] * blocks.BLOCKS_PER_PASS[options.device]),
        device=options.device,
        weight=_weight(source, options),
    )
    return request, mean


def _weight(source: PrimarySource, options: GenerationOptions) -> dict[str, Any] | None:
    """Return the flux and the spectrum of the weights; None without weights."""
    return None if options.weight is None else {"flux": options.weight, "spectrum": source.about()["spectrum"]}


def flux_weights(request: GenerationRequest) -> FluxWeights | None:
    """Return the function of the weights of the request's events; None without weights."""
    if request.weight is None:
        return None
    return FluxWeights(Spectrum.recorded(request.weight["spectrum"]), request.weight["flux"])


def _check_weight(source: PrimarySource, options: GenerationOptions) -> None:
    if options.weight is not None:
        spectrum = source if isinstance(source, Spectrum) else getattr(source, "spectrum", None)
        _require(
            spectrum is not None,
            f"--weight {options.weight}: the probability of primaries from files is not known; draw them with --spectrum",
        )
        assert isinstance(spectrum, Spectrum)
        FluxWeights(spectrum, options.weight)  # Refuses a flux that cannot weight them.


def _given_counts(primaries: Primaries, options: GenerationOptions) -> np.ndarray | None:
    """Return N of each event before the cap, or None if it is drawn."""
    return np.full(len(primaries), options.counts) if isinstance(options.counts, int) else primaries.counts


def _sample_counts(generator: BundleGenerator, primaries: Primaries, options: GenerationOptions) -> np.ndarray:
    """Return N of every SAMPLE_EVERYth event. If N is given and not drawn, check it for all events."""
    cap, given = options.max_muons_per_event, _given_counts(primaries, options)
    if given is None:
        counts = generator.draw_counts(primaries.values[::SAMPLE_EVERY], seed=options.seed)
        return counts if cap is None else np.minimum(counts, cap)
    kept = given if cap is None else np.minimum(given, cap)
    check_counts(kept, primaries.values)
    return kept[::SAMPLE_EVERY]


def _events_per_shard(mean_muons: float, block: int) -> int:
    """Return the power of two, between a block and MAX_EVENTS_PER_SHARD, that gives about MUONS_PER_SHARD muons."""
    events = MUONS_PER_SHARD / max(mean_muons, 1e-9)
    return int(2 ** np.clip(np.floor(np.log2(events)), np.log2(block), np.log2(MAX_EVENTS_PER_SHARD)))


def _add_outside(values: dict[str, list[float]], generator: BundleGenerator, primaries: np.ndarray) -> None:
    """Add the lowest and highest values outside its range of each quantity, from primaries that are outside."""
    lowest = np.array([low for low, _ in generator.training_ranges.values()], np.float32)
    for column, name in enumerate(schema.PRIMARY_FEATURES if len(primaries) else ()):
        alone = np.tile(lowest, (len(primaries), 1))  # All other quantities get values inside their ranges.
        alone[:, column] = primaries[:, column]
        found = primaries[generator.outside_training(alone), column].tolist()
        if found:
            found += values.get(name, [])
            values[name] = [min(found), max(found)]


def _report_outside(
    generator: BundleGenerator, options: GenerationOptions, how_many: str, values: dict[str, list[float]]
) -> None:
    if not values:
        return
    ranges = generator.training_ranges
    quantities = "; ".join(
        f"{name} {low:g}{f' to {high:g}' if high > low else ''} (trained: {ranges[name][0]:g} to {ranges[name][1]:g})"
        for name, (low, high) in values.items()
    )
    what = f"{how_many} primaries are outside the trained range: {quantities}"
    _require(not options.strict, f"{what}; leave them out, or generate them anyway without --strict")
    logger.warning("%s; their events are generated with %s = true", what, OUTSIDE_COLUMN)


def claim_directory(out: Output, request: GenerationRequest, about: dict[str, object]) -> None:
    """Write _request.json into an empty directory, or check that it holds the same request.

    Raises:
        ValueError: if the directory holds another request or other files.
    """
    if (stored := find_request(out)) is not None:
        _check_same(out, stored, request)
        return
    _require(not out.names(), f"{out} holds other files and no {REQUEST_FILE}; name a new directory with --out")
    with out.writing(REQUEST_FILE) as path:
        path.write_text(json.dumps({"request": request.record, **about}, indent=1), encoding="utf-8")


def _read_request(url: str) -> dict[str, Any]:
    remedy = f"name another directory with --out, or remove {url.rpartition('/')[0]}"
    record = records.read(url, keys=("request",), remedy=remedy)
    with records.damage_named(url, remedy):
        return dict(record["request"])


def _check_same(out: Output, stored: str, request: GenerationRequest) -> None:
    differing = differences(_read_request(out.of(stored)), request.record)
    _require(
        not differing,
        f"{out} belongs to another request ({'; '.join(differing)}): "
        "name another directory with --out, or remove this one",
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)

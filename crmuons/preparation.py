"""Before a run: list its files, look at a sample of their events, fit the features. Bad data are found here, at once."""

from crmuons import config, files
from crmuons.features import Features
from crmuons.reader import Selection, Tally, sample_events
from crmuons.runs import Run
from crmuons.stream import training_selection

FEATURE_EVENTS = 100_000  # Events of the sample on which the features are fitted.


def prepare(settings: config.Config, run: Run) -> None:
    """List the files, look at a sample of the events, fit the features, and write what the workers start from.

    Raises:
        FileNotFoundError, ValueError: naming what is wrong with the data.
    """
    data = settings.data
    if not data.train:
        msg = "data.train is not set: give files, a directory, a glob or a URL of event Parquet"
        raise ValueError(msg)
    listed = files.list_files(data.train)
    train = training_selection(data, None)
    held_out = Selection("validation", data.validation_share, data.test_share, vertical_depth=train.vertical_depth)
    held_out_too = [] if data.validation else [(held_out, settings.train.validation_events)]
    (sample, *rest), read = sample_events(data.train, [(train, FEATURE_EVENTS), *held_out_too])
    if data.validation:
        every = Selection(vertical_depth=train.vertical_depth)
        rest, read_too = sample_events(data.validation, [(every, settings.train.validation_events)])
        read += read_too
    (validation,) = rest
    _check_sample(read, len(sample.counts), len(validation.counts), data)
    features = Features(cartesian=settings.model.kind == "baseline").fit(sample)
    run.prepare(settings, listed, features, validation)


def _check_sample(read: Tally, train: int, validation: int, data: config.Data) -> None:
    if not read.rows:
        msg = f"the files at {', '.join(data.train)} have no rows"
        raise ValueError(msg)
    if read.quarantined > data.max_quarantined_share * read.rows:
        msg = (
            f"{read.quarantined} of the first {read.rows} rows read cannot be used, more than data.max_quarantined_share = "
            f"{data.max_quarantined_share:g}; the warnings above name files, rows and reasons"
        )
        raise ValueError(msg)
    if not train or not validation:
        msg = (
            f"{read.rows} rows gave {train} events to train on and {validation} to validate with; give more data, or set "
            "data.validation_share and data.test_share"
        )
        raise ValueError(msg)

"""Find a run's training files again when it continues. Refuse missing and changed files, unless they are skipped."""

import logging
from dataclasses import replace

from crmuons import config
from crmuons.data.quarantine import keep_skipped
from crmuons.data.recorded import find_again, refuse_unusable
from crmuons.data.selection import training_selection
from crmuons.runs import checkpoint, remote
from crmuons.runs.directory import Run
from crmuons.storage.atomic import write_json
from crmuons.storage.differences import differences
from crmuons.storage.files import File, is_remote
from crmuons.storage.identity import Digests, with_digests

logger = logging.getLogger(__name__)


# Changes of these settings are not logged here: three of them lead to the run, and `with_found_files` logs the last
# one.
UNSAID = ("run.resume", "run.name", "run.storage_path", "data.train")


# Settings of presets that version 0.1 did not have.
NEW_IN_PRESETS = ("train.condition_noise", "train.weight_power_many")


def as_begun(run: Run, settings: config.Config) -> config.Config:
    """Return settings with which a run of an earlier version continues as it began.

    The earlier version did not have the settings NEW_IN_PRESETS, but a preset may set them now.
    """
    given = settings.flat()
    lacking = set(NEW_IN_PRESETS) - run.stored_names()
    old = {path: config.LATER[path] for path in sorted(lacking) if given[path] != config.LATER[path]}
    if not old:
        return settings
    logger.info(
        "run %s was begun by a version without %s: it continues without them", run.directory.name, " and ".join(old)
    )
    return config.changed(settings, old)


def say_changed_settings(run: Run, settings: config.Config) -> None:
    """Log the settings that have changed since the run was begun.

    Raises:
        ValueError: if one of them would make it another run.
    """
    run.check_unchanged(settings)
    before, now = run.stored_settings().flat(), settings.flat()
    if changed := differences(before, now, keys=[path for path in now if path not in UNSAID], show=repr):
        logger.info("the run continues with other settings than it began with: %s", "; ".join(changed))


def with_found_files(run: Run, settings: config.Config) -> tuple[Run, list[File]]:
    """Return a run that continues with its training files as they are now, and the files that can be read.

    Files that moved (another data.train) are recorded in the run's directory. Files that data.skip_missing leaves out
    are recorded in its quarantine.

    Raises:
        ValueError: if a file is gone or has changed, or no file is left.
        FileNotFoundError: if nothing is at a new data.train.
    """
    if _is_over(run, settings):  # If a finished run is started again, it ends at once, even if its data were removed.
        return run, []
    recorded = run.load_files()
    # The user must know that this check is weak.
    if all(file.digest is None and file.stamp is None for file in recorded):
        logger.warning(
            "run %s was begun by a version that recorded only the sizes of its training files: a file that was "
            "replaced by another of the same size is not noticed",
            run.directory.name,
        )
    recorded = _with_digests_of_openings(run, recorded)
    # The user gave another place: files are then matched by content, not by name.
    moved = settings.data.train != run.stored_settings().data.train
    # The bounds are for prepared data: only the shards of the training split are looked for.
    found = find_again(recorded, settings.data.train, training_selection(settings.data, None).bounds, moved=moved)
    # If no file is left, there is nothing to train on, even with data.skip_missing.
    if not settings.data.skip_missing or len(found.unusable) == len(recorded):
        refuse_unusable(found, recorded)
    # The quarantine is written before the training starts, so that the record exists even if the run ends at once.
    for file in recorded:
        if file.url in found.unusable:
            keep_skipped(file, found.unusable[file.url], f"{run.uri}/quarantine")
    if found.new:
        logger.warning(
            "the run does not read %d files of data.train, because it did not begin with them; the first is %s",
            len(found.new),
            found.new[0],
        )
    # The record is written again even if nothing has moved now, because an earlier move may have been undone.
    if found.moved or run.moved.is_file():
        write_json(run.moved, found.moved)
    if found.moved:
        before, now = next(iter(found.moved.items()))
        logger.info("%d training files have moved, such as %s to %s", len(found.moved), before, now)
    usable = with_digests([file for file in found.files if (file.first_url or file.url) not in found.unusable])
    # The list keeps its order and length: positions in the data count slices of all files, also of those left out.
    rest = iter(usable)
    files = [file if file.url in found.unusable else next(rest) for file in found.files]
    return replace(run, found_files=tuple(files)), usable


def _with_digests_of_openings(run: Run, recorded: list[File]) -> list[File]:
    """Return the files with the digests that the run noted while it read. Remote files have no digest before that."""
    if all(file.digest is not None or not is_remote(file.url) for file in recorded):
        return recorded
    remote.fetch_newest(run)  # Another machine may have trained until now.
    newest = checkpoint.latest(run.checkpoints)
    try:
        state = {} if newest is None else checkpoint.load_training(newest)
    except ValueError as error:  # Rank 0 sets the checkpoint aside and continues from an earlier one.
        logger.warning("%s; for remote files, only size and time stamp are compared now", error)
        state = {}
    known = Digests(state.get("stream", {}).get("digests"))
    return [known.of(file) for file in recorded]


def _is_over(run: Run, settings: config.Config) -> bool:
    metrics = run.latest_metrics()
    seconds, epochs = (metrics.get(f"progress/{name}", 0.0) for name in ("seconds", "epochs"))
    done = settings.train.share_done(int(metrics.get("step", 0)), seconds, epochs)
    return run.done.is_file() and done >= 1

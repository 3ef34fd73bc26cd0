"""Find a run's training files again when it continues; refuse what changed, leave out what is gone if that is asked for."""

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


UNSAID = (
    "run.resume",
    "run.name",
    "run.storage_path",
    "data.train",
)  # They lead to the run, or are said by `with_found_files`.


# Settings of presets that version 0.1 did not have.
NEW_IN_PRESETS = ("train.condition_noise", "train.weight_power_many")


def as_begun(run: Run, settings: config.Config) -> config.Config:
    """Return settings in which a run of an earlier version keeps what it had no setting for: presets may set it now."""
    given = settings.flat()
    lacking = set(NEW_IN_PRESETS) - run.stored_names()
    old = {path: config.LATER[path] for path in sorted(lacking) if given[path] != config.LATER[path]}
    if not old:
        return settings
    logger.info("run %s was begun by a version without %s: it continues without", run.directory.name, " and ".join(old))
    return config.changed(settings, old)


def say_changed_settings(run: Run, settings: config.Config) -> None:
    """Say which settings a run continues with that it was not begun with.

    Raises:
        ValueError: if one of them would make it another run.
    """
    run.check_unchanged(settings)
    before, now = run.stored_settings().flat(), settings.flat()
    if changed := differences(before, now, keys=[path for path in now if path not in UNSAID], show=repr):
        logger.info("the run continues with other settings than it began with: %s", "; ".join(changed))


def with_found_files(run: Run, settings: config.Config) -> tuple[Run, list[File]]:
    """Return a run that continues with its training files as they are now, and those of them that can be read.

    Files that moved (another data.train) are recorded in the run's directory, and those that data.skip_missing leaves
    out in its quarantine.

    Raises:
        ValueError: if a file is gone or has changed, or no file is left.
        FileNotFoundError: if nothing is at a new data.train.
    """
    if _is_over(run, settings):  # Asked again, a finished run answers the same, even if its data were removed.
        return run, []
    recorded = run.load_files()
    # Said once, here: a check by size alone looks like a check.
    if all(file.digest is None and file.stamp is None for file in recorded):
        logger.warning(
            "run %s was begun by a version that recorded the sizes of its training files alone: a file that was replaced "
            "by another of the same size is not noticed",
            run.directory.name,
        )
    recorded = _with_digests_of_openings(run, recorded)
    # The user gave another place: files are then matched by content, not by name.
    moved = settings.data.train != run.stored_settings().data.train
    # The bounds of the split: of prepared data only the shards of the training split are looked for.
    found = find_again(recorded, settings.data.train, training_selection(settings.data, None).bounds, moved=moved)
    # Without any file left there is nothing to train on, whatever data.skip_missing says.
    if not settings.data.skip_missing or len(found.unusable) == len(recorded):
        refuse_unusable(found, recorded)
    # In the quarantine before the training starts, so that the record exists even if the run ends at once.
    for file in recorded:
        if file.url in found.unusable:
            keep_skipped(file, found.unusable[file.url], f"{run.uri}/quarantine")
    if found.new:
        logger.warning(
            "%d files of data.train, the first is %s, are not those that the run began with: it does not read them",
            len(found.new),
            found.new[0],
        )
    # Also when nothing moved this time: an earlier move may have been undone.
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
    """Return the files with the digests that the run's readings gave: those of remote files are known since then alone."""
    if all(file.digest is not None or not is_remote(file.url) for file in recorded):
        return recorded
    remote.fetch_newest(run)  # Another machine may have trained until now.
    newest = checkpoint.latest(run.checkpoints)
    try:
        state = {} if newest is None else checkpoint.load_training(newest)
    except ValueError as error:  # Rank 0 sets it aside and goes on from an earlier one.
        logger.warning("%s; of remote files, size and time stamp alone are compared now", error)
        state = {}
    known = Digests(state.get("stream", {}).get("digests"))
    return [known.of(file) for file in recorded]


def _is_over(run: Run, settings: config.Config) -> bool:
    metrics = run.latest_metrics()
    seconds, epochs = (metrics.get(f"progress/{name}", 0.0) for name in ("seconds", "epochs"))
    done = settings.train.share_done(int(metrics.get("step", 0)), seconds, epochs)
    return run.done.is_file() and done >= 1

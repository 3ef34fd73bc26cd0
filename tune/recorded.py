"""Check that a sweep continues with the data of its earlier trials."""

from crmuons.data.recorded import find_again, refuse_unusable
from crmuons.data.selection import training_selection
from tune.trials import Trial


def check_same_data(begun: Trial) -> None:
    """Refuse data that differ from an earlier trial's data, because trials on different data cannot be compared.

    Raises:
        ValueError: if a file is gone, has changed or is new; it names the first such file.
    """
    data, recorded = begun.settings().data, begun.run.load_files()
    found = find_again(recorded, data.train, training_selection(data, None).bounds, moved=False)
    if not data.skip_missing:
        refuse_unusable(found, recorded)
    if found.new:
        msg = (
            f"{begun.name} did not train on {len(found.new)} new files of data.train (the first is {found.new[0]}), so "
            "the trials could not be compared; take the files away, or start a new sweep with another run.name"
        )
        raise ValueError(msg)

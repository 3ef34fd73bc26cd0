"""Compare the data of a sweep that continues with those of its trials so far."""

from crmuons.data.recorded import find_again, refuse_unusable
from crmuons.data.selection import training_selection
from tune.trials import Trial


def check_same_data(begun: Trial) -> None:
    """Refuse data that are not those of an earlier trial: trials on different data cannot be compared.

    Raises:
        ValueError: if a file is gone, has changed or is new, with the first.
    """
    data, recorded = begun.settings().data, begun.run.load_files()
    found = find_again(recorded, data.train, training_selection(data, None).bounds, moved=False)
    if not data.skip_missing:
        refuse_unusable(found, recorded)
    if found.new:
        msg = (
            f"data.train has {len(found.new)} files, the first is {found.new[0]}, on which {begun.name} did not train: its "
            "trials could not be compared; take the files away, or start a new sweep with another run.name"
        )
        raise ValueError(msg)

"""The model from which a run begins (train.init_from). The run's directory keeps it, so a resume does not need the original."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crmuons.models.saved_model import read_tensors, write_tensors
from crmuons.storage import records
from crmuons.storage.atomic import write_json

FILES = WEIGHTS_FILE, ABOUT_FILE = "parent.pt", "parent.json"


@dataclass(frozen=True)
class Parent:
    """Weights from which a run begins, and their origin.

    Attributes:
        about: the record: uri, digest of the weights, run and step that trained them, "critic" (whether there is one),
            "features" (kept or fitted), and the record of the parent's own parent under "parent".
        model: the state dict of the model.
        critic: the state dict of its critic; None if the source has no critic.
    """

    about: dict[str, Any]
    model: dict[str, Any]
    critic: dict[str, Any] | None

    def write(self, directory: Path) -> None:
        """Write the weights and the record into the directory of a run that begins."""
        # The weights are copied, because the parent may be pruned, moved or overwritten before this run resumes.
        write_tensors(directory / WEIGHTS_FILE, {"model": self.model, "critic": self.critic})
        write_json(directory / ABOUT_FILE, self.about)

    @classmethod
    def read(cls, directory: Path) -> "Parent | None":
        """Read the parent of a run; None if it began from random weights.

        Raises:
            ValueError: if the file is damaged.
        """
        about = about_parent(directory)
        return None if about is None else cls(about, **read_tensors(directory / WEIGHTS_FILE))


def about_parent(directory: Path) -> dict[str, Any] | None:
    """Read only the record of a run's parent; None if there is none."""
    path = directory / ABOUT_FILE
    if not path.is_file():
        return None
    about: dict[str, Any] = records.read(path)
    return about

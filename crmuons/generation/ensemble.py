"""Join trained models to an ensemble: one model directory that holds the weights of all members."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crmuons import provenance
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import load_generator, model_digest
from crmuons.models import saved_model
from crmuons.models.bundle_model import Ensemble, members_of
from crmuons.storage.atomic import filled_directory
from crmuons.storage.output import Output, folder_at

# Each of 100 members draws a hundredth of the events, and all of them work on every piece of events.
MOST_MEMBERS = 100


def write_ensemble(models: Sequence[str | Path], out: str | Path) -> None:
    """Write trained models as one ensemble into a new directory.

    Args:
        models: runs, checkpoints or model directories, at paths or URLs.
        out: new directory, as a path or a URL.

    Raises:
        FileNotFoundError: if a model is missing.
        HeldError: if another process writes there.
        ValueError: if the models cannot make an ensemble (see `joined`), or the directory is not empty.
    """
    output = Output.at(out)
    model, about = joined({str(place): load_generator(place) for place in models}, number=len(models))
    with folder_at(output.url) as folder:
        if output.names():
            msg = f"{output} is not empty; name a new directory with --out, or remove the files in it"
            raise ValueError(msg)
        with filled_directory(folder, last=saved_model.SETTINGS_FILE) as partial:
            saved_model.write_model_files(partial, model, about)


def joined(generators: dict[str, BundleGenerator], *, number: int) -> tuple[Ensemble, dict[str, Any]]:
    """Return an ensemble of models, and the content of its model.json.

    Args:
        generators: the members by their places.
        number: number of places that were given; it is larger than the number of members if a place was given twice.

    Raises:
        ValueError: if there are fewer than two members, one is an ensemble or occurs twice, their muons have different
            features, or their test splits differ.
    """
    places = list(generators)
    by_digest: dict[str, str] = {}
    if number != len(places):
        msg = f"a model is given twice among {', '.join(places)}; an ensemble needs different members"
        raise ValueError(msg)
    if not 2 <= number <= MOST_MEMBERS:
        msg = f"an ensemble of {number}: expected 2 to {MOST_MEMBERS} models"
        raise ValueError(msg)
    for place, generator in generators.items():
        if generator.members:
            msg = f"{place} is an ensemble of {len(generator.members)} models itself; give its members"
            raise ValueError(msg)
        if (twin := by_digest.setdefault(model_digest(generator), place)) != place:
            msg = f"{place} has the same weights as {twin}; an ensemble needs different members"
            raise ValueError(msg)
    # With different test splits, a shower that tests one member may have trained another member, so no events would be unseen
    # by all members.
    shares = {place: _data(generator).get("test_share") for place, generator in generators.items()}
    for place, share in shares.items():
        if share != shares[places[0]]:
            msg = f"{place} was trained with data.test_share={share}, and {places[0]} with {shares[places[0]]}: their test showers differ; give models of one test_share"
            raise ValueError(msg)
    try:
        model = Ensemble([one for generator in generators.values() for one in members_of(generator.model)])
    except ValueError as error:
        numbered = "; ".join(f"{number}: {place}" for number, place in enumerate(places))
        msg = f"{error} (members {numbered})"
        raise ValueError(msg) from error
    return model.eval(), _about(generators)


def _about(generators: dict[str, BundleGenerator]) -> dict[str, Any]:
    """Return the content of model.json: the content of each member's with its digest, and the settings that all share."""
    members = [
        {**generator.metadata, "place": place, "digest": model_digest(generator)}
        for place, generator in generators.items()
    ]
    first = members[0]
    shared = {}
    if "config" in first:
        data = dict(first["config"]["data"])
        if any(_data(generator).get("fold") is not None for generator in generators.values()):
            data |= {"fold": None, "validation_share": 0.0}  # Each shower validates one member and trains the others.
        shared = {"config": {**first["config"], "data": data}}
    return {
        "model": first.get("model"),
        "step": max(int(member.get("step") or 0) for member in members),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": provenance.code_tags(),
        "members": members,
        **shared,
    }


def _data(generator: BundleGenerator) -> dict[str, Any]:
    data: dict[str, Any] = generator.metadata.get("config", {}).get("data", {})
    return data

"""A URL that nothing reads is named with the schemes that work, wherever a path or a URL is taken."""

import argparse
from collections.abc import Iterator

import pytest

from crmuons import cli, config
from crmuons.config.options import LocalPath, Output, Place, check_place
from crmuons.config.schemes import check_scheme
from crmuons.storage import files
from crmuons.training.setup import refuse_credentials


def options(parser: argparse.ArgumentParser | None = None) -> Iterator[argparse.Action]:
    """Yield every option of every command."""
    if parser is None:
        parser = cli._parser([cli.name_of(command) for group in cli.GROUPS.values() for command in group])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)
        else:
            yield action


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("data://x/y.parquet", "crmuons reads no data:// URLs; give a path, or a URL of pelican://, osdf://, https://"),
        ("pelcan://h/x", r"crmuons reads no pelcan:// URLs \(did you mean pelican://\?\); give a path"),
        ("S3://b/x", r"no S3:// URLs \(did you mean s3://\?\)"),
        ("htps://h/x", r"\(did you mean https://\?\)"),
        ("://x", "crmuons reads no :// URLs; give a path"),
        ("s3:/bucket/x", r"'s3:/bucket/x' is no URL: two slashes follow its 's3:'; .* \(for a path: ./s3:/bucket/x\)"),
        ("osdf:/ns/x", "two slashes follow its 'osdf:'"),
    ],
)
def test_no_option_and_no_setting_takes_a_url_that_nothing_reads(place, says, tmp_path, capsys, monkeypatch):
    """Every option and setting of a path or a URL, found by its type: new ones are tested at once."""
    monkeypatch.chdir(tmp_path)
    readers = [action.type for action in options() if getattr(action.type, "kind", None) in (Place, Output, LocalPath)]
    assert len(readers) > 25
    for read in readers:
        with pytest.raises(argparse.ArgumentTypeError, match=says):
            read(place)
    for setting in ("data.train", "data.validation", "run.storage_path", "train.init_from", "data.staging.dir"):
        with pytest.raises(ValueError, match=rf"{setting}: .*{says}"):
            config.load(None, ["train.steps=1", f"{setting}={place}"])
        with pytest.raises(ValueError, match=says):
            config.from_dict({"train": {"steps": 1, "init_from": place}})
    if "://" in place:
        with pytest.raises(ValueError, match=says):
            files.list_files(place)
    assert not list(tmp_path.iterdir())


def test_a_path_may_look_like_a_url_if_it_exists_or_is_told_to_be_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "b").mkdir(parents=True)
    for place in (
        "s3:/b",
        "./osdf:/x",
        "data:2024.parquet",
        "a:b",
        "models:/muons@best",
        "file:/tmp/x",
        "file:///tmp/x",
    ):
        assert check_scheme(place) == place
    (tmp_path / "data:2024.parquet").write_bytes(b"PAR1")  # fsspec would take the content of the file from its name.
    assert [file.size for file in files.list_files("data:2024.parquet")] == [4]


def test_a_directory_is_no_url(tmp_path):
    with pytest.raises(ValueError, match=r"data.staging.dir: .*'s3://b/x' is a URL; give a directory of each node's"):
        refuse_credentials(config.load(None, ["train.steps=1", "data.staging.dir=s3://b/x"]))
    with pytest.raises(ValueError, match="'file:/tmp/x' would be a directory 'file:'; give the path alone"):
        check_place("file:/tmp/x")

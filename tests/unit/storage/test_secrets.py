"""No command keeps or shows a secret that stands in a URL, in any file, log or message."""

import logging

import pytest

from crmuons import config
from crmuons.cli import GROUPS, main, name_of
from crmuons.storage import files
from crmuons.storage.redact import refuse_secrets, without_credentials
from crmuons.training.setup import refuse_credentials

SECRET = "s3cr3tvalue"
URLS = (
    *(
        f"https://h.invalid/d/a.parquet?x=1&{name}={SECRET}"
        for name in ("access_token", "X-Amz-Signature", "X-Amz-Credential", "X-Goog-Signature", "sig", "api_key", "private_token", "token", "authz", "jwt", "Signature")
    ),
    f"https://user:{SECRET}@h.invalid/d",
    f"https://{SECRET}@h.invalid/d",
    f"http://user:p@{SECRET}@h.invalid/d/*.parquet",
    f"s3://key:{SECRET}@bucket/d",
    f"sftp://me:{SECRET}@h.invalid/d",
    f"pelican://user:{SECRET}@h.invalid/d",
    f"osdf:///d/a.parquet?authz={SECRET}",
    f"https://h.invalid/d#access_token={SECRET}",
)  # fmt: skip
COMMANDS = (
    "simulate --events 10 --out {}", "convert corsika {} --out new", "inspect {}", "prepare {} --out new", "prepare d --out {}",
    "train data.train={} train.steps=1", "train data.train=['{}'] train.steps=1", "train data.train=d run.storage_path={} train.steps=1", "train {}",
    "sweep data.train={} --out new", "sweep --space {}", "evaluate --truth {} --model new --out new", "evaluate --truth d --generated {} --out new",
    "evaluate --truth d --model {} --out {}", "generate --model {} --primaries d --out new", "generate --model d --primaries {} --out new",
    "generate --model d --primaries d --out {}", "export {} --out new", "export d --out={}", "ensemble {} d --out new", "ensemble a b --out {}", "sync {}", "login {}", "login --write {}", "benchmark read --data {}",
    "settings {}", "validate {} --out new", "validate d --out {}", "nonsense {}",
)  # fmt: skip


def test_every_command_is_tried():
    tried = {command.split()[0] for command in COMMANDS}
    assert tried >= {name_of(command) for group in GROUPS.values() for command in group}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_keeps_or_shows_a_secret(command, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    for url in URLS:
        assert main(command.format(url, url).split()) == 1
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err + caplog.text
    assert shown.err.count("which files and logs would keep") == len(URLS)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("url", URLS)
def test_secrets_in_presets_and_in_calls_from_python_are_refused_too(url, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preset.toml").write_text(f'[data]\ntrain = ["{url}"]\n[train]\nsteps = 1\n')
    assert main(["train", "preset.toml"]) == 1
    assert SECRET not in "".join(capfd.readouterr())
    assert [path.name for path in tmp_path.rglob("*")] == ["preset.toml"]
    for name in ("data.validation", "run.storage_path", "data.staging.dir", "tracking.experiment"):
        with pytest.raises(ValueError, match="which files and logs would keep") as caught:
            refuse_credentials(config.load(None, ["train.steps=1", f"{name}={url}"]))
        assert SECRET not in str(caught.value)
    for call in (files.list_files, files.open_file, files.read_bytes, files.exists, files.names, files.check_writable):
        with pytest.raises(ValueError, match="which files and logs would keep") as caught:
            call(url)
        assert SECRET not in str(caught.value)
    assert SECRET not in without_credentials(f"{{'url': '{url}'}}, and {url}.")


@pytest.mark.parametrize(
    "url",
    ["https://h/a.parquet?download=1", "sftp://me@h/a", "hf://datasets/me/d@main/a", "/data/a@b:c/x", "s3://b/token=1/a", "https://h/@me/a?page=2&sort=key",
     "https://h:8443/a", "pelican://h:8443/a", "data/{a,b}/*?.parquet", "file:///a:b@c/d"],
)  # fmt: skip
def test_urls_without_a_secret_pass(url):
    refuse_secrets(url)

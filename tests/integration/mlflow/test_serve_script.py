"""cluster/mlflow/serve.sh: no account reaches the server's secrets, root serves as another user, passwords have any character."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SERVE = Path(__file__).parents[3] / "cluster" / "mlflow" / "serve.sh"
AS_ROOT = ("--user", "root") if os.geteuid() == 0 else ()


def write_secrets(folder: Path, database: str) -> Path:
    """Make the directory of a server's secrets."""
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "database").write_text(database + "\n")
    return secrets


def serve(
    folder: Path, *words: str, script: Path = SERVE, path: str = os.environ["PATH"], **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run serve.sh; in place of the server, a script says what it would get and as which user."""
    shown = folder / "bin" / "mlflow"
    shown.parent.mkdir(exist_ok=True)
    shown.write_text('#!/bin/sh\necho "$MLFLOW_BACKEND_STORE_URI" "$(id -u)" "$@"\n')
    shown.chmod(0o755)
    known = {"MLFLOW_SERVER_SECRETS": str(folder / "secrets"), "PATH": f"{shown.parent}:{path}"}
    command = ["bash", str(script), *words]
    return subprocess.run(
        command, env=os.environ | known | environment, capture_output=True, text=True, check=False, cwd=folder
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_serves_as_another_user_or_not_at_all(tmp_path):
    secrets = write_secrets(tmp_path, "postgresql:///mlflow")
    refused = serve(tmp_path)
    assert refused.returncode == 1
    assert "not as root: give --user NAME" in refused.stderr
    assert not (secrets / "admin-password").exists()
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own folders are for root alone.
        folder = Path(name)
        folder.chmod(0o755)
        secrets = write_secrets(folder, "postgresql:///mlflow")
        (copy := folder / "serve.sh").write_bytes(SERVE.read_bytes())  # The checkout may be for root alone too.
        copy.chmod(0o755)
        for path in (secrets, secrets / "database"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        done = serve(folder, "--user", "nobody", script=copy, path="/usr/bin:/bin")
        assert done.stdout.split()[1] == str(nobody.pw_uid), done.stderr
        assert (secrets / "admin-password").stat().st_uid == nobody.pw_uid


@pytest.mark.parametrize("option", ["--artifacts-destination {}", "--artifacts-destination=file://{}", "environment"])
@pytest.mark.parametrize("place", ["secrets", ".", "secrets/artifacts", "link", "/", "home", sys.prefix])
def test_no_account_reaches_the_secrets_through_artifacts(tmp_path, option, place):
    write_secrets(tmp_path, "postgresql:///mlflow")
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    named, known = tmp_path / place, {"HOME": str(tmp_path / "home")}
    words = option.format(named).split()
    if option == "environment":
        words, known = [], known | {"MLFLOW_ARTIFACTS_DESTINATION": str(named)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    refused = serve(tmp_path, *AS_ROOT, *words, path=path, **known)
    assert refused.returncode == 1
    assert "which every account could read: choose another directory" in refused.stderr


@pytest.mark.parametrize("allowed", ["{}/artifacts", "s3://bucket/x"])
def test_artifacts_may_lie_beside_the_secrets_or_elsewhere(tmp_path, allowed):
    write_secrets(tmp_path, "postgresql:///mlflow")
    (tmp_path / "home").mkdir()
    known = {"HOME": str(tmp_path / "home"), "MLFLOW_ARTIFACTS_DESTINATION": ""}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = serve(tmp_path, *AS_ROOT, "--artifacts-destination", allowed.format(tmp_path), path=path, **known)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("postgresql://me:50%off@db/mlflow", "postgresql://me:50%25off@db/mlflow"),
        ("postgresql://me:p@ss@db/mlflow", "postgresql://me:p%40ss@db/mlflow"),
        (
            "postgresql://me:p%40ss@db:5432/mlflow?sslmode=require",
            "postgresql://me:p%40ss@db:5432/mlflow?sslmode=require",
        ),
        ("postgresql:///mlflow?host=/run/x", "postgresql:///mlflow?host=/run/x"),
    ],
)
def test_a_database_password_may_have_any_character(tmp_path, written, used):
    import configparser

    secrets = write_secrets(tmp_path, written)
    done = serve(tmp_path, *AS_ROOT)
    assert done.stdout.split()[0] == used, done.stderr
    config = configparser.ConfigParser()
    config.read(secrets / "auth.ini")
    assert config["mlflow"]["database_uri"] == used
    assert config["mlflow"]["authorization_function"] == "crmuons.tracking.mlflow_server:authenticate"

"""No account of an MLflow server chooses a file of the server, and a password may have any character."""

import os
import subprocess
from pathlib import Path

import pytest

from crmuons.tracking.mlflow_server import foreign_places

SERVE = Path(__file__).parents[3] / "cluster" / "mlflow" / "serve.sh"


@pytest.mark.parametrize(
    ("body", "foreign"),
    [
        ({"name": "x", "artifact_location": "file:///home/mlflow/.mlflow-server"}, True),
        ({"name": "x", "artifact_location": "/home/mlflow/.mlflow-server"}, True),
        ({"artifactLocation": "x", "requests": [{"artifact_location": "http://evil.example"}]}, True),
        ({"artifact_location": "s3://bucket"}, True),
        ({"artifact_location": "mlflow-artifacts:/../../home"}, True),
        ({"artifact_location": "mlflow-artifacts://evil.example/x"}, True),
        ({"artifact_location": "FILE:/etc"}, True),
        ({"name": "m", "source": "file:///etc/passwd"}, True),
        ({"name": "x", "artifact_location": "mlflow-artifacts:/1"}, False),
        ({"name": "m", "source": "models:/m-1234"}, False),
        ({"name": "x", "artifact_location": ""}, False),
        ({"tags": [{"key": "source", "value": "file:///x"}]}, False),
        (None, False),
    ],
)
def test_only_the_servers_own_artifact_store_is_a_place(body, foreign):
    assert bool(list(foreign_places([body, {}]))) == foreign


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

    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "database").write_text(written + "\n")
    shown = tmp_path / "bin" / "mlflow"
    shown.parent.mkdir()
    shown.write_text('#!/bin/sh\necho "$MLFLOW_BACKEND_STORE_URI"\n')
    shown.chmod(0o755)
    environment = os.environ | {"MLFLOW_SERVER_SECRETS": str(secrets), "PATH": f"{shown.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", SERVE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == used
    config = configparser.ConfigParser()
    config.read(secrets / "auth.ini")
    assert config["mlflow"]["database_uri"] == used
    assert config["mlflow"]["authorization_function"] == "crmuons.tracking.mlflow_server:authenticate"

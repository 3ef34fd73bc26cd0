"""Scenarios 2 to 6 and 8: what a hostile server, directory or package could write, read or be given; none succeeds.

The tests use commands and scripts alone, so that they also run on an older checkout, where each succeeds: copy this file
and strangers.py there.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Bench, wait_for
from tests.integration.ports import free_ports
from tests.integration.security.strangers import (
    ROOT,
    SECRET,
    give_to_nobody,
    needs_root,
    serving,
)

pytestmark = pytest.mark.timeout(900)


# 2. A model at a URL writes any file.


@pytest.mark.parametrize("kind", ["absolute", "above"])
def test_2_a_model_url_writes_no_file_of_yours(bench: Bench, tmp_path: Path, kind: str) -> None:
    victim, payload = tmp_path / "home/.bashrc", b"echo the stranger's code\n"
    name = str(victim) if kind == "absolute" else f"{'../' * 20}{str(victim).lstrip('/')}"
    entries = {name: (len(payload), hashlib.sha256(payload).hexdigest())}
    digest = hashlib.sha256(json.dumps(["model-00000001", entries, {}], sort_keys=True).encode()).hexdigest()[:16]
    folder = f"/model-00000001-{digest}"
    manifest = {"label": "model-00000001", "files": entries, "about": {}, "places": {name: "payload"}}

    def answer(request: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        if request.path.rstrip("/") == folder:
            return 200, {"Content-Type": "text/html"}, b'<a href="manifest.json">m</a><a href="payload">p</a>'
        return 200, {}, json.dumps(manifest).encode() if request.path.endswith("manifest.json") else payload

    with serving(answer) as url:
        words = ("--model", url + folder, "--spectrum", "events=10", "--out", str(tmp_path / "out"))
        done = bench.crmuons("generate", *words, XDG_CACHE_HOME=str(tmp_path / "home/.cache"))
        said, _ = done.communicate(timeout=300)
    assert not victim.exists(), said
    assert done.returncode == 1


# 3. A stranger's run takes your files and credentials.


def tracking_server(notes: list[str]) -> Callable[[Any, bytes], tuple[int, dict[str, str], bytes]]:
    """A tracking server that takes everything, and writes down what it is sent."""
    experiment = {
        "experiment_id": "1",
        "name": "x",
        "artifact_location": "mlflow-artifacts:/1",
        "lifecycle_stage": "active",
    }
    about = {"run_id": "0" * 32, "run_uuid": "0" * 32, "experiment_id": "1", "status": "RUNNING", "start_time": 1}
    about |= {"artifact_uri": f"mlflow-artifacts:/1/{'0' * 32}/artifacts", "lifecycle_stage": "active"}
    content = {
        "experiment": experiment,
        "experiment_id": "1",
        "run": {"info": about, "data": {}},
        "runs": [],
        "files": [],
    }

    def answer(request: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        account = base64.b64decode((request.headers.get("Authorization") or "").removeprefix("Basic ")).decode()
        notes.append(f"{request.command} {request.path} {account} {body!r}")
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    return answer


@pytest.mark.parametrize("named_by", ["the directory", "the user"])
def test_3_a_strangers_run_takes_neither_files_nor_credentials(bench: Bench, tmp_path: Path, named_by: str) -> None:
    (key := tmp_path / "id").write_text(SECRET)
    (journal := tmp_path / "run/tracking/journal.jsonl").parent.mkdir(parents=True)
    (journal.parent / "files").mkdir()
    notes: list[str] = []
    with serving(tracking_server(notes)) as url:
        opened = {"identity": "x", "uri": url, "experiment": "x", "run_name": "x", "parent": ""}
        entries = [{"kind": "open", **opened}, {"kind": "artifact", "file": str(key), "folder": ""}]
        journal.write_text("".join(json.dumps({"time_ms": 1, **entry}) + "\n" for entry in entries))
        known = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "hush"}
        known |= {"MLFLOW_TRACKING_URI": url} if named_by == "the user" else {}
        done = bench.crmuons("sync", str(tmp_path / "run"), **known)
        said, _ = done.communicate(timeout=300)
    assert not any(SECRET in note for note in notes), said
    if named_by == "the directory":
        assert not any("hush" in note for note in notes), said
    else:
        assert any("hush" in note for note in notes), said  # It is the user's server, after all.


# 4. Any account of the MLflow server becomes its admin.


@needs_root
def test_4_no_account_reads_the_servers_secrets(bench: Bench, tmp_path: Path) -> None:
    (secrets := tmp_path / "secrets").mkdir(mode=0o700)
    (secrets / "database").write_text(f"sqlite:///{tmp_path}/runs.db")
    script = ROOT / "cluster/mlflow/serve.sh"
    (port,) = map(str, free_ports(1))
    words = ("--port", port, "--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1")
    path = f"{Path(sys.executable).parent}:{bench.environment['PATH']}"
    as_root = ("--user", "root") if "--user" in script.read_text() else ()
    started = bench.start(str(script), *as_root, *words, MLFLOW_SERVER_SECRETS=str(secrets), PATH=path, cwd=tmp_path)
    url, stranger = f"http://127.0.0.1:{port}", ("stranger", "a-password-of-theirs")

    def ask(place: str, account: tuple[str, str], body: dict[str, object] | None = None) -> tuple[int, bytes]:
        pair = base64.b64encode(":".join(account).encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {pair}"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url + place, data, headers), timeout=60) as answered:
                return answered.status, answered.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def is_up() -> bool:
        try:
            return ask("/health", stranger)[0] == 200
        except OSError:
            return False

    api = "/api/2.0/mlflow"
    try:
        wait_for(is_up, by=started)
        admin = ("admin", (secrets / "admin-password").read_text().strip())
        assert ask(f"{api}/users/create", admin, {"username": stranger[0], "password": stranger[1]})[0] == 200
        (link := tmp_path / "link").symlink_to(secrets)  # Which another account of the machine may have made.
        (theirs := tmp_path / "theirs").mkdir()  # Where they may make a link once the server has made the run.
        for number, place in enumerate((f"file://{theirs}", f"file://{secrets}", str(secrets), f"file://{link}")):
            named = {"name": f"x{number}", "artifact_location": place}
            status, body = ask(f"{api}/experiments/create", stranger, named)
            if status != 200:
                continue
            _, body = ask(f"{api}/runs/create", stranger, {"experiment_id": json.loads(body)["experiment_id"]})
            about = json.loads(body)["run"]["info"]
            folder = about["artifact_uri"].removeprefix("file://")
            if place.endswith("theirs"):
                Path(folder).parent.mkdir(exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                Path(folder).symlink_to(secrets)
            # The root is a folder of the run below that of the experiment: the name leads out of it, or a model's source does.
            for name in ("../../admin-password", "admin-password", os.path.relpath(secrets / "admin-password", folder)):
                _, body = ask(f"/get-artifact?path={name}&run_uuid={about['run_id']}", stranger)
                assert admin[1].encode() not in body
            pytest.fail(f"an account chose {place} of the server for its artifacts")
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.communicate(timeout=400)


# 5. Secrets in URLs are kept.


@pytest.mark.parametrize(
    "command",
    [
        "prepare {}?access_token={}&name=a.parquet --out out",  # The old code looks for the suffix at the end.
        "train small.toml data.train={}?X-Goog-Signature={} train.steps=1 run.name=x run.storage_path=out",
    ],
)
def test_5_no_file_keeps_the_secret_of_a_url(bench: Bench, tmp_path: Path, command: str) -> None:
    content = min((bench.folder / "data").glob("*.parquet")).read_bytes()

    def answer(request: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        found = re.match(r"bytes=(\d+)-(\d+)", request.headers.get("Range") or "")
        if not found:
            return 200, {"Accept-Ranges": "bytes"}, content
        begin, last = int(found[1]), min(int(found[2]), len(content) - 1)
        return 206, {"Content-Range": f"bytes {begin}-{last}/{len(content)}"}, content[begin : last + 1]

    (tmp_path / "data").symlink_to(bench.folder / "data")
    shutil.copy(bench.folder / "small.toml", tmp_path)
    with serving(answer) as url:
        words = command.format(f"{url}/a.parquet", SECRET).split()
        done = bench.start(sys.executable, "-m", "crmuons.cli", *words, cwd=tmp_path, HOME=str(tmp_path))
        said, _ = done.communicate(timeout=300)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == [], said
    assert SECRET not in said
    assert done.returncode == 1, said


# 6. A federation gets your token because it claims the issuer.


def test_6_a_hostile_federation_gets_no_token(bench: Bench, tmp_path: Path) -> None:
    seen: list[str] = []
    issuer = "https://trusted.example.org"

    def answer(request: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        if value := request.headers.get("Authorization"):
            seen.append(value)
        here = f"https://{request.headers['Host']}"
        if "pelican-configuration" in request.path:
            return 200, {}, json.dumps({"director_endpoint": here}).encode()
        if request.path.startswith("/asked"):  # A server, not the director.
            return 403, {}, b""
        asked = f"{here}/asked{request.path}"
        headers = {
            "Location": asked, "Link": f'<{asked}>; rel="duplicate"; pri=1; depth=1',
            "X-Pelican-Namespace": f"namespace=/ns, require-token=true, collections-url={here}",
            "X-Pelican-Authorization": f"issuer={issuer}",
            "X-Pelican-Token-Generation": f"issuer={issuer}, max-scope-depth=3, base-path=/ns",
        }  # fmt: skip
        return 307, headers, b""

    claims = {
        "iss": issuer,
        "aud": "https://origin.example.org",
        "exp": int(time.time()) + 3600,
        "scope": "storage.read:/",
    }
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    with serving(answer, tmp_path) as url:
        known = {"BEARER_TOKEN": f"e30.{payload}.c2ln", "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        known |= {"CRMUONS_PELICAN_PATIENCE_S": "3", "XDG_CONFIG_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
        done = bench.crmuons("inspect", f"pelican://{url.removeprefix('https://')}/ns/data/x.parquet", **known)
        said, _ = done.communicate(timeout=300)
    assert seen == [], said
    assert done.returncode == 1


@needs_root
def test_6_a_token_file_that_a_stranger_left_is_not_used(bench: Bench, tmp_path: Path) -> None:
    """The stranger would see what you read and write with it, and you would write as the stranger."""
    code = "from importlib import import_module as m\nfor name in ('crmuons.storage.pelican.tokens', 'crmuons.pelican.tokens'):\n"
    code += "    try: tokens = m(name)\n    except ImportError: continue\n    print([each.value for each in tokens.find_tokens()])"
    (left := tmp_path / f"bt_u{os.geteuid()}").write_text("planted")
    left.chmod(0o600)
    give_to_nobody(left)
    known = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    said, _ = bench.start(sys.executable, "-c", code, **known).communicate(timeout=300)
    assert said.splitlines()[-1] == "[]"


# 8. A package that was changed on its index is installed.


def test_8_a_package_that_was_changed_is_not_installed(tmp_path: Path) -> None:
    locked = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("segno=="))
    version = locked.split()[0].partition("==")[2]
    with zipfile.ZipFile(tmp_path / f"segno-{version}-py3-none-any.whl", "w") as wheel:
        about = f"segno-{version}.dist-info"
        wheel.writestr("segno.py", "print('the stranger runs code')\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: segno\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    (tmp_path / "locked.txt").write_text(locked + "\n")
    words = ["--no-index", "--find-links", str(tmp_path), "--no-deps", "--target", str(tmp_path / "site"), "-r"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *words, str(tmp_path / "locked.txt")]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=300)
    assert not (tmp_path / "site/segno.py").exists()
    assert "DO NOT MATCH THE HASHES" in done.stderr

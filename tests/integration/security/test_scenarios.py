"""Nine ways to run code as another user, to write or take their files, or to get their credentials: none succeeds.

The tests use commands and scripts alone, so that they also run on an older checkout, where each succeeds: copy this file
there. The stranger is the user `nobody`, a server on loopback, or whoever made a directory.
"""

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from tests.integration.conftest import RAY_PORTS, Bench, takes_jobs, wait_for
from tests.integration.ports import free_ports

pytestmark = pytest.mark.timeout(900)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a second user")

ROOT = Path(__file__).parents[3]
NOBODY, DAEMON = 65534, 1
SECRET = "s3cr3tvalue"
PLANT = f"""
import os, shutil, sys
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
top, name, content = sys.argv[1:]

def plant(path):
    # The file, or else a folder on the way to it, goes aside for a copy with the stranger's file in it.
    part = path
    while part != top:
        copy = part + ".planted"
        try:
            if part == path:
                open(copy, "w").close()
            else:
                shutil.copytree(part, copy)
            with open(copy + path[len(part):], "w") as file:
                file.write(content)
            os.rename(part, part + ".away")
            os.rename(copy, part)
            return part
        except (OSError, shutil.Error):
            part = os.path.dirname(part)

for folder, _, names in list(os.walk(top)):
    if name in names and (replaced := plant(os.path.join(folder, name))):
        print(replaced)
"""


@contextmanager
def serving(
    answer: Callable[[Any, bytes], tuple[int, dict[str, str], bytes]], folder: Path | None = None
) -> Iterator[str]:
    """Run a server whose answer to a request, with its body, is a status, headers and a body; yield its URL.

    With a folder it speaks TLS, and its authority's certificate is there as ca.pem.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, body = answer(self, sent)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_PUT = do_PATCH = do_PROPFIND = do_GET  # noqa: N815  names of http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if folder is not None:
        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http{'' if folder is None else 's'}://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def shared(bench: Bench) -> Iterator[Path]:
    """A folder as /tmp is: everybody may write there, and rename what is their own."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder


def give_to_nobody(*paths: Path) -> None:
    for path in paths:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def ray_of(place: Path) -> list[psutil.Process]:
    """The processes whose RAY_TMPDIR is a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == str(place):
                found.append(process)
        except psutil.Error:
            continue
    return found


def end(started: "subprocess.Popen[str]", place: Path) -> str:
    """End a command as Ctrl-C does, and what is left of its Ray; return what it said."""
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate(timeout=400)
    for process in ray_of(place):
        process.kill()
    return said


# 1. Another user of the machine runs code as you.

JOB = """
import os, time, ray
ray.init(logging_level="error")
@ray.remote
def word():
    import helper
    return helper.WORD
open(os.environ["READY"], "w").close()
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.2)
print("the task said", ray.get(word.remote()))
"""


@needs_root
@pytest.mark.ray
def test_1_no_other_user_changes_the_code_of_a_job(bench: Bench, shared: Path, tmp_path: Path) -> None:
    (job := tmp_path / "job").mkdir()
    (job / "main.py").write_text(JOB)
    (job / "helper.py").write_text("WORD = 'original'\n")
    port, dashboard, client = map(str, free_ports(3))
    words = ("--port", port, "--dashboard-port", dashboard, "--ray-client-server-port", client, "--num-cpus=1")
    path = f"{Path(sys.executable).parent}:{bench.environment['PATH']}"
    known = {"RAY_TMPDIR": str(shared), "READY": str(tmp_path / "ready"), "GO": str(tmp_path / "go"), "PATH": path}
    script = ROOT / "cluster/local/start.sh"
    started = bench.start(str(script), "--block", *words, *RAY_PORTS, **known)
    address, token = f"http://127.0.0.1:{dashboard}", Path(bench.environment["HOME"], ".ray/auth_token")
    wait_for(lambda: takes_jobs(address, token), by=started)
    submit = (
        f"source cluster/environment.sh; exec ray job submit --address {address} --working-dir {job} -- python main.py"
    )
    submitted = bench.start("bash", "-c", submit, cwd=ROOT, **known)
    wait_for((tmp_path / "ready").exists, by=submitted)
    plant = [sys.executable, "-I", "-S", "-c", PLANT, str(shared), "helper.py", "WORD = 'planted'\n"]
    planted = subprocess.run(plant, capture_output=True, text=True, check=True).stdout
    (tmp_path / "go").touch()
    said, _ = submitted.communicate(timeout=400)
    end(started, shared)
    assert "the task said original" in said, said
    assert planted == ""


@needs_root
def test_1_a_folder_that_a_stranger_made_for_a_slurm_job_is_not_used(shared: Path) -> None:
    """As the user `daemon`: root could remove the stranger's folder."""
    shutil.copytree(ROOT / "cluster", shared / "checkout/cluster")
    for folder in ("checkout", "bin", "home"):
        (shared / folder).mkdir(exist_ok=True)
        os.chown(shared / folder, DAEMON, DAEMON)
    (ray := shared / "bin/ray").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    ray.chmod(0o755)
    job = f"t{os.getpid()}"
    traps = [Path(f"/tmp/ray-{job}-1"), shared / f"ray-{DAEMON}"]
    for trap in traps:
        trap.mkdir(mode=0o777)
        (trap / "kept").touch()
        give_to_nobody(trap, trap / "kept")
    (port,) = free_ports(1)
    known = {
        "SLURM_JOB_ID": job, "SLURM_PROCID": "1", "SLURM_CPUS_PER_TASK": "1", "HOME": str(shared / "home"),
        "RAY_TMPDIR": str(shared), "PATH": f"{ray.parent}:/usr/bin:/bin",
    }  # fmt: skip
    with serving(lambda *_: (404, {}, b"")) as url:
        del port
        words = ["setpriv", f"--reuid={DAEMON}", f"--regid={DAEMON}", "--clear-groups", "bash", "cluster/slurm/node.sh"]
        done = subprocess.run(
            [*words, url.removeprefix("http://")], cwd=shared / "checkout", env=known, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    try:
        chosen = {Path(found) for found in re.findall(r"--temp-dir=(\S+)", done.stdout)}
        assert len(chosen) == 1, done.stderr
        for folder in chosen:
            assert not any(folder.is_relative_to(trap) for trap in traps)
    finally:
        for trap in traps:
            shutil.rmtree(trap, ignore_errors=True)


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


# 7. and 9. Ports that listen on the network; a stranger's listener, links and directories in /tmp.


LISTENER = f"""
import os, socket, time
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
at = [socket.create_server(('127.0.0.1', port)) for port in (6379, 8265)]
print("up", flush=True)
time.sleep(900)
"""


@pytest.fixture(scope="module")
def training(bench: Bench) -> Iterator[tuple[Bench, Path, "subprocess.Popen[str]"]]:
    """A training of one worker, with what a stranger left in its folder for temporary files and at Ray's usual port."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as name:
        shared = Path(name)
        shared.chmod(0o1777)
        stranger = shared / "strangers"
        stranger.mkdir(mode=0o777)
        (shared / "ray").mkdir(mode=0o777)
        (shared / "ray/ray_current_cluster").write_text("127.0.0.1:6379")
        (shared / f"ray-{os.getuid()}").symlink_to(stranger)
        give_to_nobody(stranger, shared / "ray", shared / "ray/ray_current_cluster", shared / f"ray-{os.getuid()}")
        listener = subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True)
        assert listener.stdout is not None
        listener.stdout.readline()  # Where the ports are taken it has ended, and somebody else listens there.
        words = ("train.steps=1000000", "run.name=beside", "scaling.num_workers=1")
        started = bench.train(*words, RAY_TMPDIR=str(shared))
        try:
            checkpoints = bench.run("beside") / "checkpoints"
            wait_for(lambda: checkpoints.is_dir() and list(checkpoints.glob("step-*")), by=started)
            yield bench, shared, started
        finally:
            end(started, shared)
            listener.kill()
            listener.communicate()


@needs_root
@pytest.mark.ray
def test_7_a_training_on_one_machine_listens_on_loopback_alone(training: tuple[Bench, Path, Any]) -> None:
    """All but torch's rendezvous, a port of the worker of rank 0, which takes no address (docs/security.md)."""
    _, shared, _ = training
    everywhere = [
        " ".join(process.cmdline())
        for process in ray_of(shared)
        for link in process.net_connections("tcp")
        if link.status == psutil.CONN_LISTEN and link.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    ]
    assert [name.partition(".")[0].strip() for name in everywhere] == ["ray::RayTrainWorker"]


@needs_root
@pytest.mark.ray
def test_9_a_training_follows_nothing_that_a_stranger_left(training: tuple[Bench, Path, Any]) -> None:
    _, shared, started = training
    assert started.poll() is None
    words = [word for process in ray_of(shared) for word in process.cmdline()]
    sessions = {Path(found) for word in words for found in re.findall(r"(/[^=,\s]*/session_[-_0-9]+)", word)}
    assert sessions
    for session in sessions:
        above = [folder for folder in session.resolve().parents if folder.is_relative_to(shared) and folder != shared]
        owners = {folder.stat().st_uid for folder in above}
        assert owners == {os.getuid()}, session
        assert stat.S_IMODE(above[-1].stat().st_mode) == 0o700
    left = {path.name for place in ("strangers", "ray") for path in (shared / place).iterdir()}
    assert left == {"ray_current_cluster"}


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

"""An elastic run on a cluster that speaks TLS and whose nodes come and go: little is lost, and nothing is read twice."""

import json
import secrets
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from crmuons import config
from crmuons.data import quarantine, reader, sampler, selection
from crmuons.ray_backend.private import network_address
from crmuons.runs import checkpoint
from crmuons.runs.directory import Run
from tests.integration.conftest import RAY_PORTS, Bench, output, wait_for
from tests.integration.ports import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

EVENTS_PER_BATCH = 64  # The preset's.
BATCHES_PER_STEP = 2  # One of the critic, one of the generator.
CHECKPOINT_EVERY = 10
MAKE_CERTIFICATES = Path(__file__).parents[3] / "cluster" / "tls.sh"
ADDRESSES = {"a": "127.0.0.2", "b": "127.0.0.3", "c": "127.0.0.4"}
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    (0, 0, 0, 4, 0, 0, 0, 0, 0)
)  # With empty settings: how gRPC begins.
KNOWN = {
    "RAY_AUTH_MODE": "token",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # Ray takes a lost node's CPUs for free until then.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5",
    "RAY_worker_niceness": "5",  # A node that starts goes before the training: Ray gives it up after 30 s.
    "RAY_health_check_period_ms": "1000",  # A dead node is known after five periods; default 3000.
}


class Cluster:
    """Nodes of one CPU each, on this machine, around a head that takes no worker; what they tell each other is encrypted."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.here, self.nodes = bench, network_address(), {}
        self.port, self.dashboard, client = free_ports(3)
        self.token = secrets.token_hex(32)
        token = bench.folder / "elastic-token"
        token.write_text(self.token)
        token.chmod(0o600)
        self.known = KNOWN | {"RAY_AUTH_TOKEN_PATH": str(token)}
        self.certificates = bench.folder / "certificates"
        output(bench.start(str(MAKE_CERTIFICATES), str(self.certificates), self.here, *ADDRESSES.values()), 0)
        self._start_node(
            "head", self.here, "--head", f"--port={self.port}", "--num-cpus=0", f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={client}", f"--temp-dir={bench.ray_directory('nodes')}",
        )  # fmt: skip
        self.wait_for("head")

    def start(self, address: str, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command with the certificate of an address."""
        source = f"source {self.certificates}/{address}/environment.sh"
        return self.bench.start("bash", "-c", f"{source} && exec {shlex.join(command)}", **self.known, **environment)

    def join(self, *names: str) -> None:
        """Start nodes, with addresses of their own: the driver would attach itself to any node at the head's.

        One after the other: of two that start at once on a machine one often gives up.
        """
        for name in names:
            words = (f"--address={self.here}:{self.port}", "--num-cpus=1")
            for _ in range(3):  # On a busy machine Ray gives a node up that takes more than 30 s to start.
                self._start_node(name, ADDRESSES[name], f"--node-ip-address={ADDRESSES[name]}", *words)
                wait_for(lambda name=name: name in self._alive() or self._has_ended(name), within=240)
                if not self._has_ended(name) or "timed out during startup" not in self._said(name):
                    break
            self.wait_for(name)

    def wait_for(self, name: str) -> None:
        """Wait until a node is alive."""

        def is_there() -> bool:
            assert not self._has_ended(name), self._said(name)
            return name in self._alive()

        wait_for(is_there, within=240)

    def kill(self, name: str) -> None:
        """What a power cut does to a node."""
        node = self.nodes.pop(name)
        for process in (*node.children(recursive=True), node):
            process.kill()

    def drain(self, name: str) -> None:
        """Tell a node to go, as Kubernetes does: it tells the others and leaves a little later."""
        self.nodes.pop(name).send_signal(signal.SIGTERM)

    def _start_node(self, name: str, address: str, *words: str) -> None:
        script = 'exec "$0" -m ray.scripts.scripts start "$@" >"$LOG" 2>&1'
        options = (f"--node-name={name}", "--include-log-monitor=false", *RAY_PORTS)  # 25 CPU-seconds of four nodes.
        command = ("bash", "-c", script, sys.executable, "--block", *options, *words)
        self.nodes[name] = psutil.Process(self.start(address, *command, LOG=str(self._log(name))).pid)

    def _has_ended(self, name: str) -> bool:
        return self.nodes[name].status() == psutil.STATUS_ZOMBIE

    def _log(self, name: str) -> Path:
        return self.bench.folder / f"node-{name}.log"

    def _said(self, name: str) -> str:
        return self._log(name).read_text()

    def _alive(self) -> set[str]:
        """The names of the nodes that the dashboard knows to be alive."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except OSError:  # It has not started yet.
            return set()
        return {node["node_name"] for node in nodes if node["state"] == "ALIVE"}


@pytest.fixture(scope="module")
def cluster(bench: Bench) -> Iterator[Cluster]:
    running = Cluster(bench)
    yield running
    for name in list(running.nodes):
        running.kill(name)


def answer(port: int, host: str, context: ssl.SSLContext | None) -> bytes:
    """What a server says to one who begins to speak HTTP/2; empty where it hangs up."""
    with ExitStack() as open_ones:
        speaking = open_ones.enter_context(socket.create_connection((host, port), timeout=30))
        try:
            if context is not None:
                speaking = open_ones.enter_context(context.wrap_socket(speaking, server_hostname=host))
            speaking.sendall(HTTP2)
            return speaking.recv(9)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_only_those_with_a_certificate_of_the_authority_are_answered(cluster: Cluster) -> None:
    authority = str(cluster.certificates / "authority.crt")
    strangers, node = (ssl.create_default_context(cafile=authority) for _ in range(2))
    for context in (strangers, node):
        context.set_alpn_protocols(["h2"])
    own = cluster.certificates / cluster.here
    node.load_cert_chain(own / "node.crt", own / "node.key")
    assert answer(cluster.port, cluster.here, node)[3:4] == bytes((4,))  # Its settings.
    assert answer(cluster.port, cluster.here, strangers) == b""
    assert answer(cluster.port, cluster.here, None) == b""
    (foreign,) = output(cluster.start(cluster.here, str(MAKE_CERTIFICATES), "other", cluster.here), 0).split()
    strangers.load_cert_chain(Path(foreign) / "node.crt", Path(foreign) / "node.key")
    assert answer(cluster.port, cluster.here, strangers) == b""
    for key in cluster.certificates.rglob("*.key"):
        assert key.stat().st_mode & 0o077 == 0


def sizes(run: Run) -> list[tuple[int, int]]:
    """At which step the run went on with how many workers."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()] if run.metrics.is_file() else []
    return [(line["step"], int(line["scaling/workers"])) for line in lines if "scaling/workers" in line]


def goes_on_with(run: Run, workers: int, *, since: int) -> Callable[[], bool]:
    """Whether the run has been started again with so many workers, and has saved a checkpoint since then."""

    def happened() -> bool:
        found = sizes(run)
        saved = max(checkpoint.steps(run.checkpoints), default=0)
        return len(found) > since and found[-1][1] == workers and saved > found[-1][0]

    return happened


def count(items: list[sampler.Segment], settings: config.Config) -> int:
    """How many events to train on are left in items."""
    pieces = reader.read_in_process(iter(items), selection.training_selection(settings.data, None))
    return sum(len(piece.counts) for piece in pieces if not isinstance(piece, quarantine.ReadCounts))


def check_that_every_event_is_read_once(run: Run) -> None:
    """What the run's history has read, and what its plan has left of the epochs begun, are these epochs' events."""
    settings = config.from_dict(json.loads((run.directory / "config.json").read_text()))
    last = checkpoint.latest(run.checkpoints)
    assert last is not None
    state = checkpoint.load_training(last)
    history = [*sizes(run), (state["trainer"]["num_steps"], 0)]
    num_batches = BATCHES_PER_STEP * sum((later - step) * workers for (step, workers), (later, _) in pairwise(history))

    shared = (sampler.cut_files(run.load_files()), settings.run.seed, settings.data.shuffle_bytes)
    before = sampler.ReadPlan.from_state(*shared, state["stream"]["plan"])
    after, _ = before.continued(before.world + 1, [(item, taken) for item, taken, *_ in state["stream"]["positions"]])
    left = [sampler.Segment(*entry, settings.run.seed, after.segments(entry[0])[entry[1]]) for entry in after.backlog]
    epoch = [sampler.Segment(0, i, 0, settings.run.seed, units) for i, units in enumerate(after.segments(0))]
    assert num_batches * EVENTS_PER_BATCH + count(left, settings) == after.base_epoch * count(epoch, settings)


def test_nodes_come_and_go_and_the_run_goes_on(bench: Bench, cluster: Cluster) -> None:
    run = Run(bench.run("elastic"))
    cluster.join("a", "b")
    words = ("train.steps=100000", "train.validate_every=100000", f"run.checkpoint_every={CHECKPOINT_EVERY}")
    elastic = ("scaling.num_workers=[1,2]", "scaling.resize_seconds=5", "run.max_failures=-1")
    command = (sys.executable, "-m", "crmuons.cli", "train", "small.toml", "data.train=data", "run.name=elastic")
    address = f"{cluster.here}:{cluster.port}"
    driver = cluster.start(cluster.here, *command, *words, *elastic, RAY_ADDRESS=address)
    wait_for(goes_on_with(run, 2, since=0), within=300)

    def after(change: Callable[[], object], workers: int) -> None:
        saved, since = max(checkpoint.steps(run.checkpoints)), len(sizes(run))
        change()
        wait_for(goes_on_with(run, workers, since=since), within=300)
        assert sizes(run)[since][0] >= saved  # No more is lost than what came after the last checkpoint.

    after(lambda: cluster.kill("b"), 1)
    after(lambda: cluster.join("c"), 2)
    after(lambda: cluster.drain("c"), 1)
    driver.send_signal(signal.SIGINT)
    said = output(driver, 130)
    for step, workers in sizes(run):
        assert f"training on {workers} workers from step {step}" in said
    assert "workers lost at" in said  # A drained node announces itself: its worker is not lost.
    check_that_every_event_is_read_once(run)

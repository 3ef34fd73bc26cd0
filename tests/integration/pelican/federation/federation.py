"""A Pelican federation on this machine: XRootD origin and two caches, director, token issuer; all on loopback."""

import json
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.pelican.federation.pki import make_pki, make_token
from tests.integration.pelican.federation.servers import start_cache, start_origin, wait_for_port
from tests.integration.ports import free_ports

DEBIAN_PACKAGES = (
    "xrootd-server",
    "xrootd-server-plugins",
    "xrootd-scitokens-plugins",
    "xrootd-client-plugins",
    "openssl",
)


def what_is_missing() -> str:
    """Why no federation can be brought up here; empty if one can."""
    missing = [program for program in ("xrootd", "openssl") if shutil.which(program) is None]
    return f"no {' and no '.join(missing)}: apt-get install {' '.join(DEBIAN_PACKAGES)}" if missing else ""


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read: crmuons refuses token files that others may read."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)


class Federation:
    """A running federation.

    Attributes:
        data: what the origin serves: `data / "public" / "x"` is `url("/public/x")`.
        ca: the certificate authority, for SSL_CERT_FILE.
        issuer: URL of the token issuer.
        caches: names of the caches, in the director's order.
    """

    caches = ("cache-a", "cache-b")

    def __init__(self, base: Path, lifetime_s: float) -> None:
        base.chmod(0o755)  # XRootD runs as a user of its own.
        self.base, self.data, self.pki = base, base / "data", base / "pki"
        self.ca = self.pki / "ca.pem"
        self.lifetime_s = lifetime_s
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.wanted: set[str] = set()  # XRootD servers that are to run.
        self.lock, self.stopping = threading.Lock(), threading.Event()
        names = ("origin", *self.caches)
        ports = free_ports(2 * len(names) + 2)
        self.director, issuer = ports[:2]
        self.issuer = f"https://localhost:{issuer}"
        self.fronts = dict(zip(names, zip(ports[2::2], ports[3::2], strict=True), strict=True))
        make_pki(self.pki)

    def start(self) -> None:
        """Start everything; returns once all listen."""
        self._start_origin()
        for name in self.caches:
            self.start_cache(name)
        config = {
            "pki": str(self.pki),
            "port": self.director,
            "issuer": self.issuer,
            "fronts": self.fronts,
        }
        (self.base / "director.json").write_text(json.dumps(config))
        self._start_python("director", str(self.base / "director.json"))
        port = urllib.parse.urlsplit(self.issuer).port
        self._start_python("issuer", str(self.pki), str(port), str(self.lifetime_s))
        for name, (_, port) in self.fronts.items():
            wait_for_port(port, self.processes[name], self.base / name / "output.log")
        wait_for_port(self.director, self.processes["director"], self.base / "director.log")
        port = urllib.parse.urlsplit(self.issuer).port
        wait_for_port(port, self.processes["issuer"], self.base / "issuer.log")
        for work in (self._restart_what_crashes, self._kill_what_hangs):
            threading.Thread(target=work, daemon=True).start()

    def start_cache(self, name: str) -> None:
        """Start a cache, or start it again."""
        origin = self.fronts["origin"][1]
        self.processes[name] = start_cache(self.base / name, self.fronts[name][1], origin, self.pki, self.issuer)
        self.wanted.add(name)

    def kill(self, name: str) -> None:
        """SIGKILL a server, which stays away."""
        with self.lock:
            self.wanted.discard(name)
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self) -> None:
        """Stop everything."""
        self.stopping.set()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def url(self, path: str) -> str:
        """The pelican:// URL of a path such as /public/file."""
        return f"pelican://localhost:{self.director}{path}"

    def token(self, scope: str = "storage.read:/", lifetime_s: float = 1200, issuer: str | None = None) -> str:
        """A token that the servers accept."""
        return make_token(self.pki, issuer or self.issuer, scope, lifetime_s)

    def fault(self, *names: str, **fault: Any) -> None:
        """Inject a fault at servers ("origin", a cache's name, "director", "discovery").

        Args:
            names: where.
            fault: one of status=503 (with headers={...}), reset=True, lost=True (a reset in place of the answer),
                delay=SECONDS, or after so many bytes of the body cut=BYTES, short=BYTES, stall=BYTES, of an upload's body
                break_upload=BYTES, stall_upload=BYTES; restricted by every=N, first=N, methods=["GET"], match="name".
        """
        self.control(faults=dict.fromkeys(names, fault))

    def clear(self) -> None:
        """No more faults, no log, the director's caches behind their fronts."""
        everywhere = ("director", "discovery", *self.fronts)
        caches = [self.fronts[name][0] for name in self.caches]
        self.control(faults=dict.fromkeys(everywhere), caches=caches)
        self._call("DELETE", "/_log")

    def advertise_bare(self, *names: str) -> None:
        """Let the director name the caches themselves, without fronts."""
        self.control(caches=[self.fronts[name][1] for name in names])

    def log(self, *names: str) -> list[dict[str, Any]]:
        """Requests seen since the last clear, at these servers or at all."""
        entries = json.loads(self._call("GET", "/_log"))
        return [entry for entry in entries if not names or entry["who"] in names]

    def approve(self, user_code: str, *, deny: bool = False) -> None:
        """Do what a user does in the browser after a login asked for it."""
        form = {"user_code": user_code, **({"deny": "1"} if deny else {})}
        self._open(f"{self.issuer}/device", "POST", urllib.parse.urlencode(form).encode())

    def control(self, **wanted: Any) -> None:
        self._call("POST", "/_control", json.dumps(wanted).encode())

    def _start_origin(self) -> None:
        port = self.fronts["origin"][1]
        self.processes["origin"] = start_origin(self.base / "origin", port, self.data, self.pki, self.issuer)
        self.wanted.add("origin")

    def _restart_what_crashes(self) -> None:
        """Do what systemd does for a real server: XRootD 5.5.3 dies now and then of a segmentation fault in libXrdPfc or
        libXrdHttpUtils, and who reads waits for it."""
        while not self.stopping.wait(0.2):
            with self.lock:
                for name in [name for name in self.wanted if self.processes[name].poll() is not None]:
                    self._start_origin() if name == "origin" else self.start_cache(name)

    def _kill_what_hangs(self) -> None:
        """End a server that runs on but answers nobody any more, as XRootD 5.5.3 does now and then after it was asked for a
        checksum: readers would wait for it to the end of their patience."""
        while not self.stopping.wait(2):
            for name in list(self.wanted):
                process = self.processes[name]
                try:
                    self._open(f"https://localhost:{self.fronts[name][1]}/", "OPTIONS", None)
                except OSError as error:  # Any other answer, or none while it starts, is no hang.
                    if isinstance(getattr(error, "reason", error), TimeoutError):
                        print(f"{name} answers nobody: it is started again", file=sys.stderr)
                        process.kill()

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        return self._open(f"https://localhost:{self.director}{path}", method, body)

    def _open(self, url: str, method: str, body: bytes | None) -> bytes:
        trust = ssl.create_default_context(cafile=self.ca)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        with opener.open(urllib.request.Request(url, body, method=method), timeout=20) as answer:
            return bytes(answer.read())

    def _start_python(self, module: str, *arguments: str) -> None:
        root = Path(__file__).parents[4]
        with (self.base / f"{module}.log").open("ab") as log:
            self.processes[module] = subprocess.Popen(
                [sys.executable, "-m", f"tests.integration.pelican.federation.{module}", *arguments],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@contextmanager
def federation(*, lifetime_s: float = 1200) -> Iterator[Federation]:
    """A federation for the time of the block, in a temporary folder.

    Args:
        lifetime_s: lifetime of the issuer's access tokens.
    """
    with tempfile.TemporaryDirectory(prefix="federation-") as base:
        running = Federation(Path(base), lifetime_s)
        try:
            running.start()
            yield running
        finally:
            running.stop()

"""The XRootD servers of a test federation: an origin and its caches."""

import os
import shutil
import socket
import string
import subprocess
import time
from pathlib import Path

from tests.integration.pelican.federation.pki import AUDIENCE, preload_keys

HERE = Path(__file__).parent
USER = "xrootd"  # XRootD refuses to run as root.


def start_origin(run: Path, port: int, data: Path, pki: Path, issuer: str) -> "subprocess.Popen[bytes]":
    """Start an origin that serves a folder: /public and /unlisted to anyone, /private and all writing to bearers of a token."""
    for namespace in ("public", "private", "unlisted"):
        (data / namespace).mkdir(parents=True, exist_ok=True)
    _give_to_xrootd(data)
    return _start(run, "origin.cfg", {"PORT": port, "DATA": data}, pki, issuer)


def start_cache(run: Path, port: int, origin: int, pki: Path, issuer: str) -> "subprocess.Popen[bytes]":
    """Start a disk cache in front of an origin; it forwards the reader's token."""
    return _start(run, "cache.cfg", {"PORT": port, "ORIGIN": origin}, pki, issuer)


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a server listens.

    Raises:
        RuntimeError: if it ends instead, with the end of its log.
    """
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else "no log"
    msg = f"{process.args!r} does not listen on port {port}:\n{last_lines}"
    raise RuntimeError(msg)


def _start(run: Path, config: str, values: dict[str, object], pki: Path, issuer: str) -> "subprocess.Popen[bytes]":
    fresh = not run.exists()
    for folder in ("names", "space", "keys", "certificates"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    if fresh:
        _write_config(run, config, {**values, "RUN": run}, issuer)
        _copy_pki(run, pki, issuer)
        _give_to_xrootd(run)
    as_user = ["-R", USER] if os.getuid() == 0 else []
    # XrdCl, by which a cache reads from the origin, takes its CAs from a hashed folder alone.
    environment = {
        **os.environ,
        "X509_CERT_DIR": str(run / "certificates"),
        "XrdSecPROTOCOL": "none",
        "XDG_CACHE_HOME": str(run / "keys"),
    }
    with (run / "output.log").open("ab") as output:
        return subprocess.Popen(
            ["xrootd", "-c", str(run / "xrootd.cfg"), "-l", str(run / "xrootd.log"), *as_user],
            cwd=run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _write_config(run: Path, config: str, values: dict[str, object], issuer: str) -> None:
    text = "".join((HERE / name).read_text() for name in ("common.cfg", config))
    for name, value in values.items():
        text = text.replace(f"$({name})", str(value))
    (run / "xrootd.cfg").write_text(text)
    (run / "authdb").write_text("u * /public rl /unlisted rl\n")
    template = string.Template(
        '[Global]\naudience_json = ["$audience"]\n\n'
        "[Issuer federation]\nissuer = $issuer\nbase_path = /public, /private, /unlisted\ndefault_user = tester\n"
    )
    (run / "scitokens.cfg").write_text(template.substitute(audience=AUDIENCE, issuer=issuer))


def _copy_pki(run: Path, pki: Path, issuer: str) -> None:
    for name in ("host.pem", "host.key", "ca.pem"):
        shutil.copy(pki / name, run / name)
    shutil.copy(pki / "ca.pem", run / "certificates")
    subprocess.run(["openssl", "rehash", str(run / "certificates")], check=True)
    preload_keys(run / "keys", issuer, pki / "jwks.json")


def _give_to_xrootd(folder: Path) -> None:
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, USER, USER)

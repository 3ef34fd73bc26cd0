"""What the scenarios share: a second user, servers on loopback, and the processes of a cluster."""

import http.server
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

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
        disable_nagle_algorithm = True  # A body that waits for the acknowledgement of its headers comes 40 ms later.

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
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http{'' if folder is None else 's'}://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


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

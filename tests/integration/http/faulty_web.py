"""A web server on loopback whose answers are wrong in the ways that web servers' are.

It serves files with ranges and index pages. `fault(request)` is asked for the fault of each answer; FAULTS names them all.
"""

import gzip
import html
import re
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

STATUSES = (400, 404, 405, 408, 410, 416, 418, 429, 500, 501, 502, 503, 504, 520)
FAULTS = (
    *(f"status {status}" for status in STATUSES),
    "retry after", "silent close", "reset", "garbage", "header only", "cut", "cut early", "reset in body", "slow", "stall",
    "redirect", "redirect loop", "redirect to a file", "no range", "no range, cut", "no range, no length", "length too long",
    "length too short", "empty", "other start", "other total", "no content range", "nonsense content range", "too much", "less", "multipart",
    "other etag", "other date", "gzip", "page", "not modified",
)  # fmt: skip


@dataclass
class Request:
    """A request: its number, method, path, range and headers."""

    number: int
    method: str
    path: str
    range: str
    headers: dict


@dataclass
class Site:
    """What is served, and which faults.

    Attributes:
        files: content by path.
        fault: returns the name of the fault of an answer; None for a right answer.
        ranges, index: whether the server knows ranges, and lists directories.
        etags: whether it gives ETags.
        requests: those that came.
    """

    files: dict
    fault: object = staticmethod(lambda _request: None)
    ranges: bool = True
    index: bool = True
    etags: bool = True
    slash: bool = True  # A directory without a slash is redirected to one with it.
    extra_links: str = ""
    password: str = ""
    requests: list = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # A body that waits for the acknowledgement of its headers comes 40 ms later.
    site: Site

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        site = self.site
        path = unquote(urlsplit(self.path).path)
        request = Request(len(site.requests), self.command, path, self.headers.get("Range", ""), dict(self.headers))
        site.requests.append(request)
        if site.password and self.headers.get("Authorization") != site.password:
            self.answer(401, b"", {"WWW-Authenticate": "Basic realm=x"})
        elif path.startswith("/moved/"):
            self.answer(302, b"", {"Location": path.removeprefix("/moved")})
        elif path in site.files:
            self.file(site.files[path], site.fault(request))
        elif any(name.startswith(path.rstrip("/") + "/") for name in site.files):
            self.folder(path)
        else:
            self.answer(404, b"no such file")

    def folder(self, path):
        if self.site.slash and not path.endswith("/"):
            self.answer(301, b"", {"Location": quote(path) + "/"})
            return
        if not self.site.index:
            self.answer(403, b"")
            return
        folder = path.rstrip("/") + "/"
        below = {name[len(folder) :] for name in self.site.files if name.startswith(folder)}
        names = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in below})
        links = "".join(f'<li><a href="{quote(name)}">{html.escape(name)}</a></li>' for name in names)
        if not self.site.slash:  # As aiohttp: absolute links without a slash.
            links = "".join(f'<a href="{quote(folder + name).rstrip("/")}">{html.escape(name)}</a>' for name in names)
        page = f'<a href="../">Parent</a> <a href="?C=N;O=D">Name</a> {self.site.extra_links}<ul>{links}</ul>'
        self.answer(200, page.encode(), {"Content-Type": "text/html; charset=utf-8"})

    def file(self, content, fault):
        headers = {"Content-Type": "application/octet-stream", "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
        if self.site.etags:
            headers["ETag"] = f'"{hash(content)}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.site.ranges else None
        start, stop, size = 0, len(content), len(content)
        if asked and int(asked[1]) < size:
            start, stop = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        elif asked:
            self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        self.send(206 if asked else 200, content, range(start, stop), headers, fault)

    def send(self, status, content, span, headers, fault):  # noqa: PLR0911, PLR0912, PLR0915  a branch for each fault
        body, size = content[span.start : span.stop], len(content)
        length = len(body)
        if fault and fault.startswith("status "):
            self.answer(int(fault.split()[1]), b"a fault")
            return
        if fault == "retry after":
            self.answer(503, b"", {"Retry-After": "0"})
            return
        if fault in ("silent close", "reset", "garbage"):
            if fault == "garbage":
                self.wfile.write(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
            self.hang_up(reset=fault == "reset")
            return
        if fault == "redirect":
            self.answer(302, b"", {"Location": "/moved" + quote(unquote(urlsplit(self.path).path))})
            return
        if fault and fault.startswith("to "):
            self.answer(302, b"", {"Location": fault.removeprefix("to ")})
            return
        if fault == "redirect loop":
            self.answer(302, b"", {"Location": self.path})
            return
        if fault == "redirect to a file":
            self.answer(302, b"", {"Location": "file:///etc/passwd"})
            return
        if fault == "page":
            self.answer(200, b"<html><p>please log in</p></html>", {"Content-Type": "text/html"})
            return
        if fault == "not modified":
            self.answer(304, b"")
            return
        if fault and fault.startswith("no range"):
            status, body, length = 200, content, size
            headers.pop("Content-Range", None)
        elif fault == "gzip":
            status, body = 200, gzip.compress(content)
            length = len(body)
            headers.pop("Content-Range", None)
            headers["Content-Encoding"] = "gzip"
        elif fault == "length too long":
            length += 1000
        elif fault == "length too short":
            length //= 2
        elif fault == "empty":
            body, length = b"", 0
        elif fault == "other start":
            headers["Content-Range"] = f"bytes {span.start + 1}-{span.stop}/{size}"
        elif fault == "other total":
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size + 7}"
        elif fault == "no content range" and "Content-Range" in headers:
            headers.pop("Content-Range", None)
            body = b"\0" * length
        elif fault == "nonsense content range":
            headers["Content-Range"] = "bytes what/ever"
        elif fault == "too much":
            body = content[span.start : span.stop + 500]
            length = len(body)
        elif fault == "less":
            body = body[: max(1, length // 3)]
            length = len(body)
            headers["Content-Range"] = f"bytes {span.start}-{span.start + length - 1}/{size}"
        elif fault == "multipart":
            headers.pop("Content-Range", None)
            headers["Content-Type"] = "multipart/byteranges; boundary=X"
            body = b"--X\r\n\r\n" + body + b"\r\n--X--"
            length = len(body)
        elif fault == "other etag":
            headers["ETag"] = '"another"'
        elif fault == "other date":
            headers["Last-Modified"] = "Thu, 02 Jan 2025 00:00:00 GMT"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "no range, no length":
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("cut", "no range, cut", "reset in body"):
            self.wfile.write(body[: len(body) // 2])
        elif fault == "cut early":
            self.wfile.write(body[:1])
        elif fault == "slow":
            for i in range(4):
                self.wfile.write(body[i * len(body) // 4 : (i + 1) * len(body) // 4])
                self.wfile.flush()
                time.sleep(0.02)
        elif fault == "stall":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(0.3)
        elif fault != "header only":
            self.wfile.write(body[:length] if fault == "length too short" else body)
        if fault in ("header only", "cut", "cut early", "no range, cut", "stall", "length too long", "reset in body"):
            self.wfile.flush()
            self.hang_up(reset=fault == "reset in body")

    def hang_up(self, *, reset=False):
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        self.close_connection = True

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing: clients hang up here by design, and so does the server."""


@contextmanager
def serving(files, **options):
    """Serve files on loopback; yields the Site."""
    site = Site(dict(files), **options)
    handler = type("Handler", (_Handler,), {"site": site})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield site
        server.shutdown()
        thread.join()

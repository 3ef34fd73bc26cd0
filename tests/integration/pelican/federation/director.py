"""Discovery, director and fault-injecting fronts of a test federation, in one process.

Answers and headers are those of Pelican's director. A front stands before each XRootD server, notes every request and
forwards it, unless a fault says otherwise.

usage: python -m tests.integration.pelican.federation.director CONFIG.json
Control: POST /_control {"faults": {NAME: FAULT or null}, "caches": [PORT, ...]}; GET, DELETE /_log.
"""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from joserfc import jws

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "host", "content-length"}
FORWARDING_ERRORS = (OSError, ClientError, asyncio.TimeoutError)
NAMESPACES = {"/public": False, "/private": True, "/unlisted": False}  # Whether reading takes a token.


class Director:
    """The state of the federation's front: faults, log, and where things are."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.pki = Path(config["pki"])
        self.port, self.issuer = config["port"], config["issuer"]
        self.fronts: dict[str, tuple[int, int]] = config["fronts"]  # name -> (its port, the server's port)
        self.caches = [ports[0] for name, ports in self.fronts.items() if name != "origin"]
        self.faults: dict[str, dict[str, Any]] = {}
        self.requests: dict[str, int] = {}
        self.log: list[dict[str, Any]] = []

    def fault(self, name: str, request: web.Request) -> dict[str, Any]:
        """The fault that hits this request; none is an empty one."""
        fault = self.faults.get(name, {})
        if request.method not in fault.get("methods", [request.method]) or fault.get("match", "") not in request.path:
            return {}
        self.requests[name] = self.requests.get(name, 0) + 1
        if self.requests[name] % fault.get("every", 1) or self.requests[name] > fault.get("first", float("inf")):
            return {}
        return fault

    def note(self, name: str, request: web.Request, status: int | str, fault: dict[str, Any] | None = None) -> None:
        self.log.append(
            {
                "who": name,
                "method": request.method,
                "path": request.path,
                "status": status,
                "range": request.headers.get("Range"),
                "token": "Authorization" in request.headers,
                "fault": bool(fault),
                "time": round(time.time(), 3),
            }
        )

    async def discovery(self, request: web.Request) -> web.Response:
        fault = self.fault("discovery", request)
        if "status" in fault:
            self.note("discovery", request, fault["status"], fault)
            return web.Response(status=fault["status"], headers=fault.get("headers", {}))
        self.note("discovery", request, 200)
        base = f"https://localhost:{self.port}"
        return web.json_response({"director_endpoint": base, "namespace_registration_endpoint": base})

    async def route(self, request: web.Request) -> web.Response:
        fault = self.fault("director", request)
        await asyncio.sleep(fault.get("delay", 0))
        if "status" in fault:
            self.note("director", request, fault["status"], fault)
            return web.Response(status=fault["status"], headers=fault.get("headers", {}))
        path = request.path.removeprefix("/api/v1.0/director/origin")
        to_origin = path != request.path or request.method in ("PUT", "PROPFIND")
        namespace = next((name for name in NAMESPACES if path == name or path.startswith(f"{name}/")), None)
        if namespace is None:
            return self._answer(request, 404, {})
        if _has_expired(request.headers.get("Authorization", "").removeprefix("Bearer ")):
            return self._answer(request, 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        servers = [self.fronts["origin"][0]] if to_origin else self.caches
        return self._answer(request, 307, self._headers(namespace, path, servers))

    def _headers(self, namespace: str, path: str, ports: list[int]) -> dict[str, str]:
        urls = [f"https://localhost:{port}{path}" for port in ports]
        needs_token = str(NAMESPACES[namespace]).lower()
        origin = self.fronts["origin"][0]
        collections = "" if namespace == "/unlisted" else f", collections-url=https://localhost:{origin}"
        return {
            "Location": urls[0],
            "Link": ", ".join(f'<{url}>; rel="duplicate"; pri={i}; depth=1' for i, url in enumerate(urls, 1)),
            "X-Pelican-Namespace": f"namespace={namespace}, require-token={needs_token}{collections}",
            "X-Pelican-Authorization": f"issuer={self.issuer}",
            "X-Pelican-Token-Generation": (
                f"issuer={self.issuer}, max-scope-depth=3, strategy=OAuth2, base-path={namespace}"
            ),
        }

    def _answer(self, request: web.Request, status: int, headers: dict[str, str]) -> web.Response:
        self.note("director", request, status)
        return web.Response(status=status, headers=headers)

    async def control(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        self.caches = wanted.get("caches", self.caches)
        for name, fault in wanted.get("faults", {}).items():
            self.faults[name] = fault or {}
            self.requests[name] = 0
        return web.Response()

    async def read_log(self, _: web.Request) -> web.Response:
        return web.json_response(self.log)

    async def clear_log(self, _: web.Request) -> web.Response:
        self.log.clear()
        return web.Response()

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/.well-known/pelican-configuration", self.discovery)
        app.router.add_post("/_control", self.control)
        app.router.add_get("/_log", self.read_log)
        app.router.add_delete("/_log", self.clear_log)
        app.router.add_route("*", "/{path:.*}", self.route)
        return app


class Front:
    """Forwards to one XRootD server, faultily if told so."""

    def __init__(self, name: str, upstream: int, director: Director) -> None:
        self.name, self.upstream, self.director = name, upstream, director
        self.session: ClientSession

    async def start(self, app: web.Application) -> None:
        trust = ssl.create_default_context(cafile=self.director.pki / "ca.pem")
        # XRootD reuses connections badly after an aborted body: one connection per request.
        connector = TCPConnector(ssl=trust, limit=0, force_close=True)
        self.session = ClientSession(connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        fault = self.director.fault(self.name, request)
        await asyncio.sleep(fault.get("delay", 0))
        if "status" in fault:
            self.director.note(self.name, request, fault["status"], fault)
            return web.Response(status=fault["status"], headers=fault.get("headers", {}))
        if fault.get("reset"):
            return self._reset(request, fault)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        if "Content-Length" in request.headers:
            headers["Content-Length"] = request.headers["Content-Length"]
        try:
            async with self.session.request(
                request.method,
                f"https://localhost:{self.upstream}{request.raw_path}",
                headers=headers,
                data=self._upload(request, fault) if request.can_read_body else None,
                allow_redirects=False,
                skip_auto_headers=["Accept-Encoding", "User-Agent"],
            ) as answer:
                return await self._forward(request, answer, fault)
        except FORWARDING_ERRORS:  # The server is gone: so is this connection.
            return self._reset(request, fault)

    async def _upload(self, request: web.Request, fault: dict[str, Any]) -> AsyncIterator[bytes]:
        """What is forwarded of a request's body: all of it, or so many bytes until it breaks off or stalls."""
        left = min(fault.get(kind, float("inf")) for kind in ("break_upload", "stall_upload"))
        async for chunk in request.content.iter_any():
            yield chunk[: int(min(len(chunk), left))]
            left -= len(chunk)
            if left <= 0:
                self.director.note(self.name, request, "upload", fault)
                await asyncio.sleep(3600 if "stall_upload" in fault else 0.3)  # Let the server begin with the file.
                raise ConnectionResetError

    def _reset(self, request: web.Request, fault: dict[str, Any]) -> web.Response:
        self.director.note(self.name, request, "reset", fault)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _forward(self, request: web.Request, answer: Any, fault: dict[str, Any]) -> web.StreamResponse:
        if fault.get("lost"):
            return self._reset(request, fault)
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers=headers)
        length = answer.headers.get("Content-Length")
        if length is not None:
            response.content_length = min(int(length), fault.get("short", int(length)))
        self.director.note(self.name, request, answer.status, fault)
        await response.prepare(request)
        if request.method != "HEAD":
            await self._body(request, response, answer, fault)
        return response

    async def _body(self, request: web.Request, response: Any, answer: Any, fault: dict[str, Any]) -> None:
        """Copy the body as far as the fault allows: short (and consistent), cut, or stalled after so many bytes."""
        allowed = min(fault.get(kind, float("inf")) for kind in ("short", "cut", "stall"))
        sent = 0
        async for chunk in answer.content.iter_any():
            piece = chunk[: int(min(len(chunk), allowed - sent))]
            await response.write(piece)
            sent += len(piece)
            if sent < allowed:
                continue
            if "stall" in fault:
                await asyncio.sleep(3600)
            if "cut" in fault:
                await asyncio.sleep(0.05)  # Let what was sent arrive.
                request.transport.abort()
            return
        await response.write_eof()


def _has_expired(token: str) -> bool:
    """Whether a token says so itself: the director turns expired ones away, and leaves the rest to the servers."""
    if token.count(".") != 2:
        return False
    claims = json.loads(jws.extract_compact(token.encode()).payload)
    return bool(claims["exp"] < time.time())


async def serve(config: dict[str, Any]) -> None:
    """Serve until killed."""
    director = Director(config)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(director.pki / "host.pem", director.pki / "host.key")
    applications = [(director.application(), director.port)]
    for name, (port, upstream) in director.fronts.items():
        front = Front(name, upstream, director)
        app = web.Application(client_max_size=0)
        app.on_startup.append(front.start)
        app.router.add_route("*", "/{path:.*}", front.handle)
        applications.append((app, port))
    for app, port in reversed(applications):  # The director last: once it listens, all do.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))

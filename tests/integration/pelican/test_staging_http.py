"""Staging from a plain HTTP server, whose ranges, checksums and bad days are real."""

import asyncio
import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from crmuons.storage.files import File, list_files
from crmuons.storage.staging.cache_dir import CacheDir
from crmuons.storage.staging.download import Staging
from crmuons.storage.staging.transfer import BLOCK_BYTES

SIZE = BLOCK_BYTES + 1000


@dataclass
class Server:
    """Serves one file as /data.bin, with a digest that the test chooses.

    Attributes:
        path: the file.
        url: of the file.
        digest: its Digest header; empty for none.
        ranges: those that were asked for.
    """

    path: Path
    url: str = ""
    digest: str = ""
    ranges: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            self.ranges.append(request.headers.get("Range", "all"))
        wanted = "md5" in request.headers.get("Want-Digest", "")
        return web.FileResponse(self.path, headers={"Digest": self.digest} if wanted and self.digest else {})

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_get("/data.bin", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/data.bin"
        ready.set()
        await stop.wait()
        await runner.cleanup()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(SIZE))
    server, loop, ready, stop = Server(path), asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(ready, stop),))
    thread.start()
    assert ready.wait(10)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def md5(path: Path) -> str:
    return "md5=" + base64.b64encode(hashlib.md5(path.read_bytes(), usedforsecurity=False).digest()).decode()


def test_a_file_comes_in_blocks_and_once(server: Server, tmp_path: Path) -> None:
    (file,) = list_files(server.url)
    assert file == File(server.url, SIZE)
    server.ranges.clear()
    there = Staging(CacheDir(tmp_path / "staged", 10**9, 10), 4)
    for _ in range(2):
        held = there.hold(file)
        assert held.file.read() == server.path.read_bytes()
        held.release()
    assert 1 <= len(server.ranges) <= 2  # fsspec may join the two blocks.
    assert server.ranges[0].startswith("bytes=0-")
    assert "sha-256:" in there.cache.path(file).with_suffix(".lock").read_text()  # The server said nothing.


@pytest.mark.parametrize("stated", [True, False])
def test_a_part_is_continued_where_a_checksum_vouches_for_it(server: Server, tmp_path: Path, stated: bool) -> None:
    server.digest = md5(server.path) if stated else ""
    file = File(server.url, SIZE)
    there = Staging(CacheDir(tmp_path / "staged", 10**9, 10), 4)
    there.check()
    part = there.cache.path(file).with_suffix(".part")
    part.write_bytes(server.path.read_bytes()[:BLOCK_BYTES] if stated else b"x" * BLOCK_BYTES)
    held = there.hold(file)
    assert held.file.read() == server.path.read_bytes()
    held.release()
    assert server.ranges[0].startswith(f"bytes={BLOCK_BYTES if stated else 0}-")


def test_what_does_not_have_the_stated_checksum_is_fetched_again_and_then_refused(
    server: Server, tmp_path: Path
) -> None:
    server.digest = md5(server.path)
    file = File(server.url, SIZE)
    there = Staging(CacheDir(tmp_path / "staged", 10**9, 10), 4)
    there.check()
    part = there.cache.path(file).with_suffix(".part")
    part.write_bytes(b"x" * BLOCK_BYTES)  # Of another version: only the whole shows it.
    held = there.hold(file)
    assert held.file.read() == server.path.read_bytes()
    held.release()
    there.cache.remove(file)
    was = server.path.stat()
    server.path.write_bytes(bytes(SIZE))
    os.utime(server.path, ns=(was.st_atime_ns, was.st_mtime_ns))  # The server's ETag is made of size and time.
    with pytest.raises(OSError, match=r"data.bin: the downloaded file has checksum md5:\w+, its server says md5:\w+"):
        there.hold(file)
    assert list(there.cache.folder.iterdir()) == [there.cache.folder / "room.lock"]

"""Write files in a federation: whole files, to the origin, under new names. Their size at the origin is checked."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

from crmuons.storage.http.exchange import DENIED
from crmuons.storage.http.sources import Fault, Patience, Source
from crmuons.storage.pelican.director import Namespace
from crmuons.storage.pelican.refusals import Access, judge_refusal, no_token
from crmuons.storage.pelican.servers import Servers
from crmuons.storage.pelican.tokens import Token

# 404: an earlier DELETE succeeded, and its answer was lost.
ANSWERS_TO_PUT, ANSWERS_TO_DELETE = (200, 201, 204), (200, 202, 204, 404)
# An origin gives this answer while a cache still reads the old content.
LOCKED = 423


class Writer:
    """Writes and removes the files of a federation.

    Args:
        servers: the servers of the federation.
        size_of: returns the size of a file at the origin, None if it does not exist.
    """

    def __init__(self, servers: Servers, size_of: Callable[[str], Awaitable[int | None]]) -> None:
        self.servers, self.waits, self._size_of = servers, servers.waits, size_of

    async def check(self, path: str) -> Token:
        """Return the token that would be sent to write a path.

        Raises:
            PermissionError: if there is no token, or its claims show that it does not allow writing here.
        """
        return (await self._writable(path))[1]

    async def put(self, local: Path, path: str) -> None:
        """Copy a local file to a new name. An existing name is refused, because caches keep the old content.

        Raises:
            FileExistsError: if the file exists, or an interrupted upload left a part of it that the token may not
                overwrite.
            PermissionError: if no token allows it.
            ConnectionError: if the origin did not take the file within Waits.patience_s.
        """
        namespace, _ = await self._writable(path)
        url, size, arrived = self.servers.url(path), local.stat().st_size, False
        # The origin is asked, because a cache may have an old answer.
        if await self._size_of(path) is not None:
            msg = f"{url} exists; files of a federation are not overwritten, since caches keep them: take a new name"
            raise FileExistsError(msg)
        origin = await self.servers.upload_target(path)
        patience, access = Patience(self.waits.patience_s, url), Access(namespace, path, "write")
        while not arrived:
            source = await patience.next(origin)
            try:
                # An upload without an error may still be incomplete: the size at the origin decides below.
                await self._upload(access, source, local)
                fault = Fault(source, "it accepted the file but holds another size")
            except Fault as failed:
                fault = failed
            # Perhaps only the answer was lost. aiohttp then repeats a PUT by itself, and a create-only token may not overwrite.
            origin_size = await self._size_of(path)
            arrived = origin_size == size
            if not arrived and origin_size is not None:
                await self._check_overwritable(access, origin_size)
            # Judged after the check of the origin, because a repeated PUT of a file that has arrived is refused too.
            if not arrived and fault.status in DENIED:
                await judge_refusal(fault, access, origin, patience, self.waits.token_s)
            patience.record(origin, fault)

    async def remove(self, path: str) -> None:
        """Remove a file or an empty folder. Do nothing if it does not exist.

        Raises:
            PermissionError: if the token does not allow it; `storage.create` does not.
            OSError: if the origin refuses.
        """
        namespace, _ = await self._writable(path)
        access = Access(namespace, path, "write")
        # The scopes are checked now, because the origin would only answer 403 to a DELETE.
        await self._check_overwritable(access, None)
        origin = await self.servers.upload_target(path)
        patience = Patience(self.waits.patience_s, self.servers.url(path))
        answer = await self.servers.request("DELETE", origin, access, patience)
        if answer.status not in ANSWERS_TO_DELETE:
            msg = f"{self.servers.url(path)} cannot be removed: {origin.best().url} answered HTTP {answer.status}"
            raise OSError(msg)

    async def _writable(self, path: str) -> tuple[Namespace, Token]:
        namespace, url = await self.servers.namespace(path, listing=True), self.servers.url(path)
        token = await Access(namespace, path, "write").token()
        if token is None:
            raise PermissionError(no_token(url, namespace))
        if token.expired() or not token.allows("write", path, namespace.base_paths):
            msg = f"{url} cannot be written with {token}; log in with 'crmuons login --write {url}'"
            raise PermissionError(msg)
        return namespace, token

    async def _check_overwritable(self, access: Access, num_bytes: int | None) -> None:
        """Raise an error if the token's scopes do not allow replacing `num_bytes` at the origin, or (None) removing the file."""
        token, namespace = await access.token(), access.namespace
        if token is None or namespace is None or token.allows("overwrite", access.path, namespace.base_paths):
            return
        url = self.servers.url(access.path)
        if num_bytes is None:
            msg = f"{url} cannot be removed with {token}; that takes a token with storage.modify"
            raise PermissionError(msg)
        msg = f"{url} holds {num_bytes} bytes of an interrupted upload, and {token} may not overwrite them: take a new name"
        raise FileExistsError(msg)

    async def _upload(self, access: Access, source: Source, local: Path) -> None:
        with local.open("rb") as file:
            # A task, so that this can stop without an answer if the server stops reading.
            sending = asyncio.create_task(self._send(access, source, file))
            try:
                await self._watch(sending, source, file)
            finally:
                sending.cancel()
                await asyncio.wait([sending])  # It reads the file, which the caller closes next.
            status = sending.result()
        if status == LOCKED:
            raise Fault(source, "it still has the file open, for a cache that read the old content", status=status)
        if status not in ANSWERS_TO_PUT:
            msg = f"{self.servers.url(access.path)} cannot be written: {source.url} answered HTTP {status}"
            raise OSError(msg)

    async def _send(self, access: Access, source: Source, file: IO[bytes]) -> int:
        token = await access.token(source)
        async with self.servers.exchange("PUT", source, access.path, token=token, data=file) as answer:
            return answer.status

    async def _watch(self, sending: "asyncio.Task[int]", source: Source, file: IO[bytes]) -> None:
        """Wait until the file is sent, or the server stops reading; aiohttp only limits the wait for the answer."""
        # The position in the file shows how much was sent; if it does not change for read_s, the server hangs.
        sent = -1
        while not sending.done():
            before, sent = sent, sent if file.closed else file.tell()  # aiohttp closes the file once all is sent.
            if before == sent:
                raise Fault(source, f"it took {sent} bytes and then nothing for {self.waits.read_s:g} s")
            await asyncio.wait([sending], timeout=self.waits.read_s)

"""Writing behind a federation: files go to the origin whole and under new names, and count once the origin has all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

from crmuons.storage.pelican.director import Namespace
from crmuons.storage.pelican.refusals import DENIED, Access, judge_refusal, no_token
from crmuons.storage.pelican.servers import Servers
from crmuons.storage.pelican.sources import Fault, Patience, Source
from crmuons.storage.pelican.tokens import Token

ANSWERS_TO_PUT, ANSWERS_TO_DELETE = (200, 201, 204), (200, 202, 204, 404)  # 404: the answer before was lost.
LOCKED = 423


class Writer:
    """Writes and removes the files of a federation.

    Args:
        servers: whom to ask.
        size_of: the size of a file at the origin, None where there is none.
    """

    def __init__(self, servers: Servers, size_of: Callable[[str], Awaitable[int | None]]) -> None:
        self.servers, self.waits, self._size_of = servers, servers.waits, size_of

    async def check(self, path: str) -> Token:
        """The token that would be sent.

        Raises:
            PermissionError: if there is none, or it says itself that it does not cover writing here.
        """
        return (await self._writable(path))[1]

    async def put(self, local: Path, path: str) -> None:
        """Copy a local file to a name that is new: caches go on serving what a name held before.

        Raises:
            FileExistsError: if there is such a file, or what an upload that broke off left of one, which the token may
                not overwrite.
        """
        namespace, _ = await self._writable(path)
        url, size, arrived = self.servers.url(path), local.stat().st_size, False
        if await self._size_of(path) is not None:
            msg = f"{url} exists; files of a federation are not overwritten, since caches keep them: take a new name"
            raise FileExistsError(msg)
        origin = await self.servers.upload_target(path)
        patience, access = Patience(self.waits.patience_s, url), Access(namespace, path, "write")
        while not arrived:
            source = await patience.next(origin)
            try:
                await self._upload(access, source, local)
                fault = Fault(source, "it took the file, and holds another size")
            except Fault as failed:
                fault = failed
            # The answer alone may have been lost; aiohttp then repeats a PUT by itself, which a create-only token may not.
            found = await self._size_of(path)
            arrived = found == size
            if not arrived and found is not None:
                await self._check_overwritable(access, found)
            if not arrived and fault.status in DENIED:
                await judge_refusal(fault, access, origin, patience, self.waits.token_s)
            patience.record(origin, fault)

    async def remove(self, path: str) -> None:
        """Remove a file, or a folder that is empty; that there is none is as good.

        Raises:
            PermissionError: if the token does not cover it: `storage.create` does not.
        """
        namespace, _ = await self._writable(path)
        access = Access(namespace, path, "write")
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

    async def _check_overwritable(self, access: Access, found: int | None) -> None:
        """Raise where the token says that it does not cover replacing or removing what is there."""
        token, namespace = await access.token(), access.namespace
        if token is None or namespace is None or token.allows("overwrite", access.path, namespace.base_paths):
            return
        url = self.servers.url(access.path)
        if found is None:
            msg = f"{url} cannot be removed with {token}; that takes a token with storage.modify"
            raise PermissionError(msg)
        msg = f"{url} holds {found} bytes of an upload that broke off, and {token} may not overwrite: take a new name"
        raise FileExistsError(msg)

    async def _upload(self, access: Access, source: Source, local: Path) -> None:
        with local.open("rb") as file:
            sending = asyncio.create_task(self._send(access, source, file))
            try:
                await self._watch(sending, source, file)
            finally:
                sending.cancel()
                await asyncio.wait([sending])  # It reads the file, which is closed next.
            status = sending.result()
        if status == LOCKED:
            raise Fault(source, "it has the file still open, for a cache that read what was there", status=status)
        if status not in ANSWERS_TO_PUT:
            msg = f"{self.servers.url(access.path)} cannot be written: {source.url} answered HTTP {status}"
            raise OSError(msg)

    async def _send(self, access: Access, source: Source, file: IO[bytes]) -> int:
        token = await access.token()
        async with self.servers.exchange("PUT", source, access.path, token=token, data=file) as answer:
            return answer.status

    async def _watch(self, sending: "asyncio.Task[int]", source: Source, file: IO[bytes]) -> None:
        """Wait until it is sent, or until the server takes no more: aiohttp itself limits the waiting for answers alone."""
        sent = -1
        while not sending.done():
            before, sent = sent, sent if file.closed else file.tell()  # aiohttp closes it once all is sent.
            if before == sent:
                raise Fault(source, f"it took {sent} bytes and then nothing for {self.waits.read_s:g} s")
            await asyncio.wait([sending], timeout=self.waits.read_s)

"""What counts as an answer to a request for a range of a file (RFC 9110, 14)."""

import re

import aiohttp

from crmuons.storage.pelican.sources import Fault, Source


def check_range(answer: aiohttp.ClientResponse, source: Source, start: int, size: int) -> None:
    """Raise a Fault unless an answer's body is a file of this size from this byte on."""
    if answer.status in (404, 410, 416):
        raise Fault(source, f"HTTP {answer.status}", status=answer.status, doubtful=True)
    if answer.status != 206 and not (answer.status == 200 and start == 0):
        raise Fault(source, f"HTTP {answer.status} to a request for a range", status=answer.status)
    if answer.status == 200 and answer.content_length not in (None, size):
        raise Fault(source, f"it holds {answer.content_length} bytes of a file of {size}", doubtful=True)
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", f"bytes {start}-0/*"))
    if found is None or int(found[1]) != start:
        raise Fault(source, f"another range than asked for: {answer.headers['Content-Range']}")
    if found[2] not in ("*", str(size)):
        raise Fault(source, f"it holds {found[2]} bytes of a file of {size}", doubtful=True)

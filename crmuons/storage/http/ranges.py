"""Check the answer to a range request (RFC 9110, section 14)."""

import re

import aiohttp

from crmuons.storage.http.sources import Fault, Source


def check_range(answer: aiohttp.ClientResponse, source: Source, start: int, size: int) -> None:
    """Raise a Fault unless the answer's body starts at byte `start` of a file of `size` bytes."""
    if answer.status in (404, 410, 416):
        raise Fault(source, f"HTTP {answer.status}", status=answer.status, doubtful=True)
    # A server may ignore the range and send the whole file, which is right only for a range from the start.
    if answer.status != 206 and not (answer.status == 200 and start == 0):
        raise Fault(source, f"HTTP {answer.status} to a request for a range", status=answer.status)
    if answer.status == 200 and answer.content_length not in (None, size):
        raise Fault(source, f"it holds {answer.content_length} bytes of a file of {size}", doubtful=True)
    # An answer of 200 has no Content-Range, and passes.
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", f"bytes {start}-0/*"))
    if span is None or int(span[1]) != start:
        raise Fault(source, f"another range than asked for: {answer.headers['Content-Range']}")
    # If the present size differs from the listed size, the file was replaced, or this server holds another version.
    if span[2] not in ("*", str(size)):
        raise Fault(source, f"it holds {span[2]} bytes of a file of {size}", doubtful=True)

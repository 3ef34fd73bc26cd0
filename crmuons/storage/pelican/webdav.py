"""Parse the listings of WebDAV servers (RFC 4918, PROPFIND)."""

import xml.etree.ElementTree as ET
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from crmuons.storage.inside import OutsideError, relative_name

DAV = "{DAV:}"


def parse_listing(xml: bytes) -> list[dict[str, Any]]:
    """Return the entries of a multistatus answer, including the listed path itself.

    Returns:
        For each entry: name (an absolute path without a trailing slash), type ("file" or "directory"), size in bytes
        (0 for a directory) and, if the server gives it, mtime.

    Raises:
        ValueError: if the XML is not a multistatus answer, or a file has no size.
    """
    try:
        root = ET.fromstring(xml)  # noqa: S314  Expat limits the growth of entities; nothing else is resolved
    except ET.ParseError as error:
        msg = f"the listing is not XML: {error}"
        raise ValueError(msg) from None
    # Without this check, a proxy's or a portal's page would be an empty folder.
    if root.tag != f"{DAV}multistatus":
        msg = f"the listing is a <{root.tag}>, not a WebDAV multistatus"
        raise ValueError(msg)
    return [_entry(response) for response in root.iterfind(f"{DAV}response")]


def check_inside(entries: list[dict[str, Any]], path: str) -> None:
    """Check that the entries of a listing are the listed path and entries directly in it.

    Raises:
        OutsideError: if an entry is elsewhere: the server is broken, or tries to make other files be read or replaced.
    """
    # XRootD does not escape a `%` in a name, so the decoded name of the listed path itself may differ.
    itself = (path.rstrip("/") or "/", unquote(path.rstrip("/")) or "/")
    for name in (entry["name"] for entry in entries):
        if name not in itself:
            below = relative_name(name.removeprefix(f"{path.rstrip('/')}/"), f"the listing of {path}")
            if "/" in below:
                msg = f"the listing of {path} names {name!r}, which does not lie directly in it: the server is broken"
                raise OutsideError(msg)


def _entry(response: ET.Element) -> dict[str, Any]:
    href = response.findtext(f"{DAV}href", "")
    # urlsplit would drop tabs, which XRootD does not escape.
    name = unquote(href if href.startswith("/") else urlsplit(href).path).rstrip("/") or "/"
    size = response.findtext(f".//{DAV}getcontentlength")
    entry: dict[str, Any] = {"name": name, "type": "file"}
    if response.find(f".//{DAV}resourcetype/{DAV}collection") is not None:
        entry |= {"type": "directory", "size": 0}
    # There is no default of 0, because a training file of 0 bytes would be left out without a message.
    elif size is None or not size.isdigit():
        msg = f"the listing gives no size for '{name}'"
        raise ValueError(msg)
    else:
        entry["size"] = int(size)
    changed = _date(response.findtext(f".//{DAV}getlastmodified"))
    return entry if changed is None else {**entry, "mtime": changed}


def _date(text: str | None) -> datetime | None:
    try:
        return None if text is None else parsedate_to_datetime(text)
    except ValueError:
        return None

"""Check names that come from a manifest, a journal, an index or a listing: each stays inside its folder.

Whoever wrote the list may be a stranger. Joined unchecked, an absolute path or `..` in it would read or replace any file of
the user, and a link on the way would lead out of the folder too.
"""

from pathlib import Path


class OutsideError(ValueError):
    """Raised for a name that leaves the folder that it belongs to."""


def relative_name(name: object, source: object) -> str:
    """Return a name if it is a plain path below a folder, such as `tracking/journal.jsonl`.

    Args:
        name: the name, with `/` between its parts.
        source: what gave it, for the message.

    Raises:
        OutsideError: if it is no text, empty, absolute, or has `..`, `.`, an empty part or a NUL in it.
    """
    if not isinstance(name, str) or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        msg = (
            f"{source} names {name!r}, which is no path below its own folder: it was changed or is not to be trusted; "
            "nothing was read or written there"
        )
        raise OutsideError(msg)
    return name


def inside(folder: Path, name: object, source: object) -> Path:
    """Return the path of a name in a folder, once the name and everything on the way to it is checked.

    Raises:
        OutsideError: if `relative_name` refuses it, or if the path or a folder on the way to it is a link.
    """
    path = folder
    for part in relative_name(name, source).split("/"):
        path /= part
        if path.is_symlink():
            msg = f"{source} names {name!r}, and {path} is a link; remove the link: files are not followed out of {folder}"
            raise OutsideError(msg)
    return path

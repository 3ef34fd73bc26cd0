"""Check that names from a manifest, a journal, an index or a listing stay inside their folder.

The list may come from a stranger. Without the check, an absolute path or `..` in it would read or replace any file of the
user. A link on the way would also lead out of the folder.
"""

from pathlib import Path


class OutsideError(ValueError):
    """Raised for a name that leaves the folder that it belongs to."""


def relative_name(name: object, source: object) -> str:
    """Return a name if it is a plain path below a folder, such as `tracking/journal.jsonl`.

    Args:
        name: the name, with `/` between its parts.
        source: the source of the name, for the message.

    Raises:
        OutsideError: if it is no text, is empty or absolute, or has `..`, `.`, an empty part or a NUL in it.
    """
    if not isinstance(name, str) or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        msg = (
            f"{source} names {name!r}, which is no path below its own folder: it was changed or is not to be trusted; "
            "nothing was read or written there"
        )
        raise OutsideError(msg)
    return name


def inside(folder: Path, name: object, source: object) -> Path:
    """Check a name and all folders on the way to it, and return its path in a folder.

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

"""The error for a file whose content has changed since it was listed."""


class ChangedError(OSError, ValueError):
    """Raised if a file is not the file that was listed."""

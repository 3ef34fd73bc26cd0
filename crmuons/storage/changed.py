"""The error for a file whose content is another than when it was listed."""


class ChangedError(OSError, ValueError):
    """Raised if a file is not the one that was listed."""

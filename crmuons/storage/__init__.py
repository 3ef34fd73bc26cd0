"""Files at paths and URLs: read, written whole, staged on a local disk."""

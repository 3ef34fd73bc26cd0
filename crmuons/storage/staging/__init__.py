"""Copies of remote files on a node's own disk, made ahead of their use."""

"""Stage remote files: copy them to a node's own disk before they are read."""

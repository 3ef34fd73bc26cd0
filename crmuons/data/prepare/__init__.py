"""Prepare a data set once: from raw files to shuffled shards (build runs the work, shuffle does it)."""

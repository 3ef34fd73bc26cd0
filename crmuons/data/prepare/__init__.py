"""Prepare a data set once: make shuffled shards from raw files. build runs the tasks, shuffle has the tasks."""

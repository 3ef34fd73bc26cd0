"""A run's directory, its checkpoints, and the copy that is kept at a URL."""

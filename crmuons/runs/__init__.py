"""A run's directory, its checkpoints, and its copy at a URL."""

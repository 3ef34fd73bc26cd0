"""A run's directory, its checkpoints, and its copy at a URL.

- find: the run that a command starts or continues; owned: ownership of a run by one process at a time
- directory: the files of a run; checkpoint: its checkpoints; parent: the model from whose weights it began
- location: where runs are stored; remote and uploads: the copy at a URL
"""

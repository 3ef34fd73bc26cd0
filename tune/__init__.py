"""Sweeps: Ray Tune around the training of one run (docs/sweeps.md)."""

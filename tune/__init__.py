"""Sweeps: many trainings on Ray Tune over a space of settings (docs/sweeps.md)."""

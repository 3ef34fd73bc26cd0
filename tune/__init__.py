"""Sweeps over the WGAN's settings."""

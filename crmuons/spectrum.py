"""Keeps `from crmuons.spectrum import simweights_tables` working, which users' scripts hold; see `generation.spectrum`."""

from crmuons.generation.spectrum import simweights_tables

__all__ = ["simweights_tables"]

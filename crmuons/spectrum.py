"""Keeps `from crmuons.spectrum import simweights_tables` of users' scripts working; see `generation.spectrum`."""

from crmuons.generation.spectrum import simweights_tables

__all__ = ["simweights_tables"]

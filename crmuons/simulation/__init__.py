"""Muon bundles from published parametrisations, and from CORSIKA 7 files. docs/simulator.md has the physics."""

"""Make muon bundles from published parametrisations or from CORSIKA 7 files; docs/simulator.md has the physics.

simulate draws data sets: shower draws the muons at the surface with atmosphere, and propagation takes them through the
ice. corsika reads real showers, and comparison sets them beside simulated ones.
"""

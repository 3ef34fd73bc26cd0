"""Make muon bundles from published parametrisations or other programs' files; docs/simulator.md has the physics.

simulate draws data sets: shower draws the muons at the surface with atmosphere, and propagation takes them through ice,
water or rock. convert makes events of other programs' files: corsika and corsika8 read real showers, which surface
takes to the depths, muonitron reads dumps, and source writes one file for each. comparison sets real showers beside
simulated ones.
"""

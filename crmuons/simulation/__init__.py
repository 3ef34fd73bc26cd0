"""Make muon bundles from published parametrisations or other programs' files; docs/simulator.md has the physics.

- simulate draws data sets: primaries draws the primaries, shower the muons at the surface (with yields and atmosphere);
  tracks follows them through ice, water or rock with the losses of propagation
- convert makes events from files of other programs: corsika and corsika8 read real showers, which surface takes to the
  depths; muonitron reads dumps; source writes one file for each source
- comparison and bundles compare real showers with simulated showers
"""

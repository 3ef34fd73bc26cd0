"""crmuons: distributed training of a generator of atmospheric muon bundles."""

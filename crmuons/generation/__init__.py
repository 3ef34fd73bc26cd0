"""Generate muon bundles from a trained model, in memory or as a data set of shards."""

"""Ray: the cluster, the workers, the reading tasks. No other package of crmuons imports it."""

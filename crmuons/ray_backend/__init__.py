"""Ray: the cluster, workers, and tasks that read and write. No other package of crmuons imports ray."""

"""Ray: cluster, workers, tasks that read and write. No other package of crmuons imports ray."""

"""`crmuons prepare`: raw files to shuffled shards in one pass."""

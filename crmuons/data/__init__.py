"""Event Parquet in the data contract: checked, selected, shuffled, batched."""

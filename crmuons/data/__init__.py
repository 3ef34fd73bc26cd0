"""Read events that follow the data contract: check, select, shuffle and batch them.

The way from files to batches, with the modules that do each step:

- what an event is: schema (the contract), events (arrays in memory), arrow (Arrow tables), geometry (slant depth)
- which files: manifest (raw and prepared data sets), selection (splits and caps)
- which rank reads what and when: sampler
- reading a slice of a file: parquet (raw files), shards (prepared files), staged_reading (remote files)
- reading a segment, shuffled and checked: reader, with quarantine for what is left out
- batches: loader, with batcher and prefetch
- looking at data without training: inspection, plausibility, sample
- finding the files of a run again: recorded
- preparing data once, for many runs: prepare
"""

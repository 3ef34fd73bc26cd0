"""What `ray job submit` runs: each module parses, calls one library function, prints where the results are."""

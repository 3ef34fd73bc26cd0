"""`crmuons benchmark`: figures of speed, each beside its reference in the same run. docs/performance.md says what they mean."""

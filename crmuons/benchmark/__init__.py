"""`crmuons benchmark`: figures of speed, each beside its reference in the same run. docs/speed.md says what they mean."""

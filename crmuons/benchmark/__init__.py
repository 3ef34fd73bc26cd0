"""Measure a speed and its reference in the same run: `crmuons benchmark`. docs/performance.md explains the figures."""

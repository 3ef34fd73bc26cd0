"""Measure speed beside a reference in the same run: `crmuons benchmark`. docs/performance.md explains the figures."""

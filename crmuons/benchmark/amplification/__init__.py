"""Measure what a model makes of few showers: `crmuons benchmark amplification`. docs/amplification.md explains it.

Butter et al., "GANplifying event samples", SciPost Phys. 10, 139 (2021), arXiv:2008.06545.
"""

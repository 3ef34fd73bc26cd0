"""Compare generated events with true ones: figures of merit, their floor (truth against truth), and the report.

docs/metrics.md defines the figures.
"""

"""Generated events held against true ones: figures of merit, their floor, and the report. docs/metrics.md defines them."""

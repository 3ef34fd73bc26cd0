"""The report of an evaluation: tables, figures, the HTML page."""

"""The report of an evaluation: tables, figures and the HTML page."""

"""The report: one self-contained HTML page, and PNG files, from the JSON results."""

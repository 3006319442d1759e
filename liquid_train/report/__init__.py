"""Reading runs: terminal tables, the HTML page, comparison of two runs."""

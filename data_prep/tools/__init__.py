"""`liquid data`: merge, verify, describe, inspect."""

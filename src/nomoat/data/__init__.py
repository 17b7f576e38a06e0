"""Rows: reading, dividing, checking for contamination, and rendering them as tokens; and the generator of the shipped set."""

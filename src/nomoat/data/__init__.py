"""Rows from file, hub or the shipped set to tokens: reading, splitting, checking for contamination, rendering, counting.

May import config, scorers, io and errors. Never imports torch; a base's tokenizer is passed in.
Begin with examples.py (`Example`, one line of a data file), then prepare.py; desk_build.py and its helpers generate data/desk/.
"""

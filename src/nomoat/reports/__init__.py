"""report.json and its views: built from a run directory, recomputed when read, compared, and shown.

May import data, runs, config, stats and scorers; never torch, transformers or peft, so that a report is read anywhere.
Begin with schema.py (the fields), then build.py (written and verified) and metrics.py (scores from rows).
"""

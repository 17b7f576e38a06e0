"""A run's own records: its directory and checkpoints, ledger, meters, costs and provenance.

May import config, io and errors. Never imports torch.
Begin with directory.py (made, locked, resumed, never overwritten) and ledger.py (one line per stretch of work).
"""

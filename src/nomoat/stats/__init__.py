"""Intervals of scores and of paired differences on clustered rows, and their simulated coverage.

Pure functions over lists; imports numpy and scipy, of nomoat only errors and io. docs/evaluation.md names the methods.
Begin with intervals.py, then paired.py.
"""

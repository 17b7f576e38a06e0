"""Answers and scores of the arms on held-out rows, baselines without a model, standard benchmarks, and `make try`.

May import training and everything below; reports are built from the files that are written here, not by this package.
Begin with arms.py; generate.py and prefill.py decode (with the reference as a draft: docs/evaluation.md).
"""

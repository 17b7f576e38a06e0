"""From tokenised rows to an adapter on disk: packing, collation, the loop on transformers.Trainer, the checks of the adapter.

May import models, kernels, data, runs, reports and what is below, never evaluation.
Begin with loop.py; packing.py decides which rows share a forward pass, adapter_checks.py whether the result is real.
"""

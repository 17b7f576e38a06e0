"""A run from its specification to its report, phase by phase, and a finished adapter scored again.

Puts evaluation, training, models, data, runs and reports together; only scripts, memo, benchmarks and planning import it.
Begin with finetune.py, whose methods train/sft.py calls in order; run_spec.py refuses what can be refused beforehand.
"""

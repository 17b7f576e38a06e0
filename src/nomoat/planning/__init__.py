"""What a recipe will need before it runs: parameters, memory by phase, time and money (`make plan`).

Only train/plan.py imports this package; it may import everything below (not memo or benchmarks).
Begin with plan.py; memory.py follows the real work on tensors without data, measure.py runs one step for MEASURE=1.
"""

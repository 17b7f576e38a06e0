"""Speed comparisons: a training step against transformers.Trainer and TRL, scoring against `model.generate`.

Only train/bench.py, eval/speed.py and eval/reference.py import this package; it may import everything below (not memo or planning).
Begin with training.py, whose arms are in peers.py; results.py turns timings into bench.json, a table and a plot.
"""

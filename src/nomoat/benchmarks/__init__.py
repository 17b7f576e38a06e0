"""Comparisons with other people's software: training with transformers and TRL, scoring with `model.generate`."""

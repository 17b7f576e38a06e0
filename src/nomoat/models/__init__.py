"""Bases, adapters and devices: fetching, checking, loading, saving.

May import kernels, data, runs, config and what is below, never training or evaluation.
Begin with base.py (where a base comes from, how it is loaded) and adapter.py (LoRA, its variants, full fine-tuning).
"""

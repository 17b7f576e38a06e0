"""Faster ways through a model on a CPU; `hardware.kernels: plain` runs what each of them replaces."""

"""What every test shares: no network, and one thread."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports a library that reads it; a test that would download fails instead
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads only wait for each other on models of two layers

"""What every test shares: no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports a library that reads it; a test that would download fails instead

"""What every test shares: no network, and one thread."""

import os
from collections import Counter

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports a library that reads it; a test that would download fails instead
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads only wait for each other on models of two layers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that the processes that share the files (xdist's loadfile) end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -min(slow[item.path], 1))

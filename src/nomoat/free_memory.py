"""Memory that is free and still resident: a C heap keeps the pages of what a phase has let go, and the next phase adds its own."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Collect garbage (a trainer refers to itself, and holds its model), then hand free pages back to the system."""
    gc.collect()
    trim()


def trim() -> None:
    """Hand free pages of the heap back; does nothing where the C library is not glibc.

    After a batch of scoring that is 1 to 2 GB: the keys and values of its rows, in blocks too small to go back by themselves.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return

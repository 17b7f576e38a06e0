"""Pages that are free go back to the system, where the C library lets us ask for it."""

from __future__ import annotations

import platform

import psutil
import pytest

from nomoat.models.device import release_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_freed_memory_does_not_stay_resident() -> None:
    def resident() -> int:
        return int(psutil.Process().memory_info().rss)

    blocks = [bytearray(b"x" * 100_000) for _ in range(2_000)]  # 200 MB in blocks too small to be mapped by themselves
    pinned = blocks[-1]  # the heap's end stays in use, so that nothing goes back by itself
    del blocks
    before = resident()
    release_memory()
    assert before - resident() > 100_000_000 and len(pinned) == 100_000

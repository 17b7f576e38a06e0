"""How fast this machine multiplies matrices, now: what a processor's name does not tell.

Two servers of one name trained at 785 and 159 tokens a second (recipes/LOG.md). Counted in multiplications and additions (FLOPs).
"""

from __future__ import annotations

import time
from typing import Any

CUBE = 2048  # a square product large enough for any processor to be at its best
SECONDS = 0.25  # for each shape, and longer where that holds fewer than
CALLS = 6  # of them (one core needs a quarter of a second for one: a single call told 54 and 75 GFLOP/s of two like cores at one time),
LONGEST = 3.0  # but no longer than this


def machine_gflops(device: str) -> float:
    """GFLOP/s of a float32 `linear` of 2048 cubed, with the threads that torch has; three digits, within a few seconds."""
    return float(f"{rate_of(CUBE, CUBE, CUBE, 'float32', device) / 1e9:.3g}")


def rate_of(rows: int, inputs: int, outputs: int, precision: str, device: str) -> float:
    """FLOPs a second of `linear` with these sizes: the fastest of at least CALLS calls, where LONGEST seconds hold so many."""
    import torch
    from torch.nn.functional import linear

    dtype = getattr(torch, precision) if precision in ("float32", "float16") else torch.bfloat16
    x = torch.randn(rows, inputs, dtype=dtype, device=device)
    weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
    with torch.inference_mode():
        linear(x, weight)
        _synchronise(device)
        taken: list[float] = []
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < SECONDS or (len(taken) < CALLS and spent < LONGEST):
            began = time.perf_counter()
            linear(x, weight)
            _synchronise(device)
            taken.append(time.perf_counter() - began)
    return 2.0 * rows * inputs * outputs / min(taken)


def _synchronise(device: Any) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()

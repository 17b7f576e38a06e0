"""How fast this machine multiplies matrices, now: what a processor's name does not tell.

Two servers of one name trained at 785 and 159 tokens a second (recipes/LOG.md). Counted in multiplications and additions (FLOPs).
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

from nomoat.config.schema import QUANTISED, Hardware, Recipe
from nomoat.errors import NomoatError

# MERGED devices:
# Which device, which precision, how many threads: chosen by capability and always said.
# Processors of one name differ by this several times over: the widest of these belongs to the name.
VECTORS = (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 with bfloat16"), ("avx512_f", "AVX-512"), ("avx2", "AVX2"))


@dataclass(frozen=True)
class Device:
    """Where the work is done. `memory_bytes` is the device's own memory, or the machine's for a CPU."""

    kind: str  # cuda, mps or cpu
    name: str
    memory_bytes: int
    threads: int

    def record(self) -> dict[str, Any]:
        """For environment.json and the ledger."""
        return {**asdict(self), "architecture": platform.machine(), "cores": os.cpu_count()}


def choose_device(hardware: Hardware) -> Device:
    """The stated device, or cuda, then mps, then cpu; sets torch's threads. NomoatError if the stated one is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = hardware.device
    if kind == "auto":
        kind = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[kind]:
        usable = " or ".join(name for name, here in there.items() if here)
        raise NomoatError(f"hardware.device: '{kind}' is not available here; use {usable}, or auto")
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory, torch.get_num_threads())
    return Device(kind, _processor_name(), _machine_memory(), torch.get_num_threads())


def _processor_name() -> str:
    import torch

    can = torch.cpu.get_capabilities()
    name = str(can.get("cpu_name") or platform.processor() or platform.machine())
    widest = next((text for feature, text in VECTORS if can.get(feature)), None)
    return f"{name} ({widest})" if widest else name


def _machine_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def training_precision(recipe: Recipe, device: Device) -> str:
    """The recipe's precision, or for auto: bfloat16 where the hardware multiplies it natively, else float32."""
    if recipe.precision != "auto":
        return _supported(recipe.precision, device)
    if recipe.lora.method == "pissa":
        return "float32"  # recipe.py says why
    return "bfloat16" if has_bfloat16(device.kind) else "float32"


def _supported(precision: str, device: Device) -> str:
    if device.kind == "mps" and precision in QUANTISED:
        raise NomoatError(
            f"precision: {precision} needs bitsandbytes, whose kernels do not run on mps; use bfloat16 or float32, or hardware.device=cpu"
        )
    if device.kind != "cuda" and precision == "float16":
        raise NomoatError(
            f"precision: float16 needs its loss scaled, which is done on CUDA only (on {device.kind} it would be float32 without a word); "
            "use bfloat16 or float32"
        )
    return precision


def has_bfloat16(kind: str) -> bool:
    """Whether a device of that kind multiplies bfloat16 natively; elsewhere it is far slower than float32."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "mps":
        return False  # not measured by us: float32 is the safe choice, bfloat16 can be stated
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is Arm's name for it


def scoring_precision(precision: str, device: Device) -> str:
    """Float32 on a CPU, where bfloat16 answers change with the rows that share their batch; elsewhere as trained."""
    if precision in QUANTISED:
        return precision
    return "float32" if device.kind == "cpu" else precision


# MERGED free_memory:
# Memory that is free and still resident: a C heap keeps the pages of what a phase has let go, and the next phase adds its own.


def release_memory() -> None:
    """Collect garbage (a trainer refers to itself, and holds its model), then hand free pages back to the system."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Hand free pages of the heap back; does nothing where the C library is not glibc.

    After SmolLM2's 54 longest few-shot prompts that is 1.4 GB: keys and values, in blocks too small to go back by themselves.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


MATMUL_SIZE = 2048  # a square product large enough for any processor to be at its best
PROBE_SECONDS = 0.25  # for each shape, and longer where that holds fewer than
PROBE_CALLS = (
    6  # of them (one core needs a quarter of a second for one: a single call told 54 and 75 GFLOP/s of two like cores at one time),
)
LONGEST_PROBE_SECONDS = 3.0  # but no longer than this


def machine_gflops(device: str) -> float:
    """GFLOP/s of a float32 `linear` of 2048 cubed, with the threads that torch has; three digits, within a few seconds."""
    return float(f"{matmul_flops_per_second(MATMUL_SIZE, MATMUL_SIZE, MATMUL_SIZE, 'float32', device) / 1e9:.3g}")


def matmul_flops_per_second(rows: int, inputs: int, outputs: int, precision: str, device: str) -> float:
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
        while (spent := time.perf_counter() - start) < PROBE_SECONDS or (len(taken) < PROBE_CALLS and spent < LONGEST_PROBE_SECONDS):
            began = time.perf_counter()
            linear(x, weight)
            _synchronise(device)
            taken.append(time.perf_counter() - began)
    return 2.0 * rows * inputs * outputs / min(taken)


def _synchronise(device: Any) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()

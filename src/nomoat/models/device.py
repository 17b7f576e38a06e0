"""Device and precision, chosen by capability; freed heap pages returned to the system; and how fast this machine multiplies matrices."""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from dataclasses import dataclass

import psutil
import torch
from torch.nn.functional import linear

from nomoat.config.schema import QUANTISED, Hardware, Recipe
from nomoat.errors import NomoatError

# The widest of these instruction sets becomes part of a CPU's name: models of one name differ in speed by several times.
VECTORS = (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 with bfloat16"), ("avx512_f", "AVX-512"), ("avx2", "AVX2"))

# A matmul benchmark takes the fastest of several calls of one shape: at least PROBE_CALLS calls and PROBE_SECONDS, unless that takes
# longer than LONGEST_PROBE_SECONDS. One core needs a quarter of a second per call of MATMUL_SIZE cubed, and a single call measured 54
# and 75 GFLOP/s on two equal cores at the same time.
MATMUL_SIZE = 2048  # of a square product, large enough for any processor to reach its best rate
PROBE_SECONDS = 0.25
PROBE_CALLS = 6
LONGEST_PROBE_SECONDS = 3.0


@dataclass(frozen=True)
class Device:
    """Where the work is done. `memory_bytes` is the device's own memory, or the machine's for a CPU."""

    kind: str  # cuda, mps or cpu
    name: str
    memory_bytes: int
    threads: int


def choose_device(hardware: Hardware) -> Device:
    """The stated device, or cuda, then mps, then cpu; sets torch's threads. NomoatError where the stated one is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = hardware.device
    if kind == "auto":
        kind = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[kind]:
        usable = " or ".join(name for name, present in available.items() if present)
        raise NomoatError(f"hardware.device: '{kind}' is not available on this machine; use {usable}, or auto")
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory, torch.get_num_threads())
    return Device(kind, _processor_name(), int(psutil.virtual_memory().total), torch.get_num_threads())


def _processor_name() -> str:
    features = torch.cpu.get_capabilities()
    name = str(features.get("cpu_name") or platform.processor() or platform.machine())
    widest = next((text for feature, text in VECTORS if features.get(feature)), None)
    return f"{name} ({widest})" if widest else name


def training_precision(recipe: Recipe, device: Device) -> str:
    """The recipe's precision, or for auto: bfloat16 where the hardware multiplies it natively, else float32.

    Raises NomoatError for a precision that the device does not support.
    """
    precision = recipe.precision
    if precision == "auto":  # PiSSA takes the base's weights apart, which would be rounded in 16 bits
        return "bfloat16" if recipe.lora.method != "pissa" and has_bfloat16(device.kind) else "float32"
    if device.kind == "mps" and precision in QUANTISED:
        raise NomoatError(
            f"precision: {precision} needs bitsandbytes, whose kernels do not run on mps; use bfloat16 or float32, or hardware.device=cpu"
        )
    if device.kind != "cuda" and precision == "float16":
        raise NomoatError(
            f"precision: float16 needs loss scaling, which is done on CUDA only (on {device.kind} it would silently be float32); "
            "use bfloat16 or float32"
        )
    return precision


def has_bfloat16(kind: str) -> bool:
    """Whether a device of that kind multiplies bfloat16 natively; where it is emulated it is far slower than float32."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "mps":
        return False  # not measured: float32 is the safe default, and bfloat16 can be stated
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is Arm's name for it


def scoring_precision(precision: str, device: Device) -> str:
    """Float32 on a CPU, where a bfloat16 answer depends on the others in its batch; elsewhere the precision of training."""
    if precision in QUANTISED:
        return precision
    return "float32" if device.kind == "cpu" else precision


def release_memory() -> None:
    """Collect garbage (a Trainer is part of a reference cycle and holds its model), then return free heap pages to the system."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Return free heap pages to the system (glibc `malloc_trim`); does nothing with another C library.

    After the 54 longest few-shot prompts of SmolLM2 that is 1.4 GB: keys and values, in blocks too small to be returned on free.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def machine_gflops(device: str) -> float:
    """GFLOP/s of a float32 `linear` of 2048 cubed with torch's threads, to three digits; a multiplication and an addition are 2 FLOPs.

    A processor's name does not give it: two servers of one name trained at 785 and 159 tokens per second (recipes/LOG.md).
    """
    return float(f"{matmul_flops_per_second(MATMUL_SIZE, MATMUL_SIZE, MATMUL_SIZE, 'float32', device) / 1e9:.3g}")


def matmul_flops_per_second(rows: int, inputs: int, outputs: int, precision: str, device: str) -> float:
    """FLOP/s of `linear` on x (rows, inputs) and W (outputs, inputs): the fastest of several calls (see PROBE_CALLS)."""
    dtype = getattr(torch, precision) if precision in ("float32", "float16") else torch.bfloat16
    x = torch.randn(rows, inputs, dtype=dtype, device=device)
    weight = torch.randn(outputs, inputs, dtype=dtype, device=device)

    def seconds() -> float:
        start = time.perf_counter()
        linear(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        seconds()  # warm-up
        taken: list[float] = []
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < PROBE_SECONDS or (len(taken) < PROBE_CALLS and spent < LONGEST_PROBE_SECONDS):
            taken.append(seconds())
    return 2.0 * rows * inputs * outputs / min(taken)

"""Device, precision and threads: chosen by capability, refused with the reason."""

from __future__ import annotations

import time

import pytest

from nomoat.config.schema import Base, Hardware, Recipe
from nomoat.errors import NomoatError
from nomoat.models import device as device_module
from nomoat.models.device import PROBE_CALLS, Device, choose_device, machine_gflops, scoring_precision, training_precision

CPU, MPS, CUDA = (Device(kind, "a name", 1, 2) for kind in ("cpu", "mps", "cuda"))


def recipe(precision: str) -> Recipe:
    return Recipe(name="r", base=Base(path="x"), precision=precision)


def test_auto_takes_an_available_device_and_another_one_is_refused() -> None:
    import torch

    device = choose_device(Hardware())
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert device.kind == expected and device.memory_bytes > 1e9 and device.name
    for kind in {"cuda", "mps"} - {expected}:
        with pytest.raises(NomoatError, match=rf"hardware\.device: '{kind}' is not available on this machine; use .*cpu"):
            choose_device(Hardware(device=kind))


def test_a_processors_name_includes_its_widest_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for can, name in (
        ({"cpu_name": "Some CPU", "avx2": True, "avx512_f": True, "avx512_bf16": True}, "Some CPU (AVX-512 with bfloat16)"),
        ({"cpu_name": "Some CPU", "avx2": True, "avx512_f": False}, "Some CPU (AVX2)"),
        ({"cpu_name": "Some CPU"}, "Some CPU"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert choose_device(Hardware(device="cpu")).name == name


def test_stated_threads_are_set() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        assert choose_device(Hardware(device="cpu", threads=1)).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_float16_is_for_cuda_and_the_reason_is_given() -> None:
    for place in (CPU, MPS):
        with pytest.raises(NomoatError, match=f"float16 needs loss scaling.*on {place.kind} it would silently be float32"):
            training_precision(recipe("float16"), place)
    assert training_precision(recipe("float16"), CUDA) == scoring_precision("float16", CUDA) == "float16"


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_mps_refuses_quantised_bases_with_the_reason(precision: str) -> None:
    with pytest.raises(NomoatError, match=f"{precision} needs bitsandbytes"):
        training_precision(recipe(precision), MPS)
    assert training_precision(recipe(precision), CPU) == precision


def test_mps_trains_in_float32_unless_bfloat16_is_stated() -> None:
    assert training_precision(recipe("auto"), MPS) == "float32"
    assert training_precision(recipe("bfloat16"), MPS) == "bfloat16"


def test_a_cpu_scores_in_float32_and_a_gpu_as_it_trained() -> None:
    assert scoring_precision("bfloat16", CPU) == "float32"
    assert scoring_precision("bfloat16", CUDA) == "bfloat16"
    assert scoring_precision("nf4", CPU) == "nf4"


def test_a_machines_rate_is_the_fastest_of_several_products(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    real, calls = torch.nn.functional.linear, []

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) % 2:
            time.sleep(0.05)  # every other product is far slower
        return real(x, weight)

    monkeypatch.setattr(device_module, "MATMUL_SIZE", 64)
    monkeypatch.setattr(device_module, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(device_module, "linear", counted)
    slowest = 2 * 64**3 / 0.05 / 1e9
    assert machine_gflops("cpu") > 2 * slowest
    assert calls == [64] * (1 + PROBE_CALLS), "one to warm up, and as many as it takes"

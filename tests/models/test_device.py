"""Device, precision and threads: chosen by capability, refused with the reason."""

from __future__ import annotations

import pytest
import torch

from nomoat.config.schema import Base, Hardware, Recipe
from nomoat.errors import NomoatError
from nomoat.models import device as device_module
from nomoat.models.device import PROBE_CALLS, Device, choose_device, matmul_flops_per_second, scoring_precision, training_precision

CPU, MPS, CUDA = (Device(kind, "a name", 1, 2) for kind in ("cpu", "mps", "cuda"))


def recipe(precision: str) -> Recipe:
    return Recipe(name="r", base=Base(path="x"), precision=precision)


def test_auto_takes_what_is_there_and_a_device_that_is_not_is_refused() -> None:
    device = choose_device(Hardware())
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert device.kind == expected and device.memory_bytes > 1e9 and device.name
    for kind in {"cuda", "mps"} - {expected}:
        with pytest.raises(NomoatError, match=rf"hardware\.device: '{kind}' is not available here; use .*cpu"):
            choose_device(Hardware(device=kind))


def test_a_processors_name_tells_how_wide_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    for can, name in (
        ({"cpu_name": "Some CPU", "avx2": True, "avx512_f": True, "avx512_bf16": True}, "Some CPU (AVX-512 with bfloat16)"),
        ({"cpu_name": "Some CPU", "avx2": True, "avx512_f": False}, "Some CPU (AVX2)"),
        ({"cpu_name": "Some CPU"}, "Some CPU"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert choose_device(Hardware(device="cpu")).name == name


def test_stated_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        assert choose_device(Hardware(device="cpu", threads=1)).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_float16_is_for_cuda_and_the_reason_is_told() -> None:
    for place in (CPU, MPS):
        with pytest.raises(NomoatError, match=f"float16 needs its loss scaled.*on {place.kind} it would be float32"):
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


def test_a_rate_rests_on_several_products_however_long_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = torch.nn.functional.linear, []

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return real(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    monkeypatch.setattr(device_module, "PROBE_SECONDS", 0.0)
    assert matmul_flops_per_second(64, 64, 64, "float32", "cpu") > 1e6
    assert len(sizes) == 1 + PROBE_CALLS, "one to warm up, and as many as it takes"

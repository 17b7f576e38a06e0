"""Estimates on tiny models compared with what real ones hold: parameters, files, and the memory of a real step."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nomoat.config.load import load_recipe
from nomoat.evaluation.prefill import Request
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.adapter import adapter_size, adapter_tensors, attach_adapter, save_adapter, weights_of
from nomoat.models.base import load_model
from nomoat.planning import memory
from nomoat.planning.memory import Memory, scoring_memory, training_memory
from nomoat.planning.plan import Plan, make_plan
from nomoat.training.collate import choose_packing, summed_loss
from tests.stories import RECIPE, ROOT
from tests.tiny import make_base, write_user_rows

TOLERANCE = 0.005  # of the bytes of a real step
METHODS = ["lora", "dora", "pissa", "full"]
ONE_PASS = ("train.batch_tokens=256",)  # a step of one micro-batch


def make_tiny_plan(folder: Path, *changes: str, architecture: str = "llama") -> Plan:
    """The plan of a tiny recipe on a tiny base, both written below `folder`."""
    make_base(folder / "model", architecture)
    write_user_rows(folder / "rows.jsonl", 60)
    (folder / "tiny.yaml").write_text(RECIPE.replace("./model", str(folder / "model")).replace("rows.jsonl", str(folder / "rows.jsonl")))
    return make_plan(load_recipe(folder / "tiny.yaml", list(changes)), ROOT)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_counts_and_the_size_of_the_file_are_those_of_a_real_adapter(tmp_path: Path, architecture: str, method: str) -> None:
    plan = make_tiny_plan(tmp_path, f"lora.method={method}", "lora.rank=4", "precision=float32", architecture=architecture)
    files, lora = plan.spec.files, plan.spec.recipe.lora
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), lora, seed=0, files=files)
    size = adapter_size(model)
    save_adapter(model, tmp_path / "saved", files, start=adapter_tensors(model) if method == "pissa" else None)
    counts = plan.spec.counts
    assert (counts.trainable, counts.base_parameters) == (size.parameters, size.base_parameters)
    tensors = len(adapter_tensors(model))
    assert counts.saved_bytes == pytest.approx(weights_of(tmp_path / "saved").stat().st_size, abs=64 * tensors)


class RealPeak(TorchDispatchMode):
    """The most bytes that real tensors allocated since the beginning held at one time."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self.held = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in (value for value in tree_iter(out) if isinstance(value, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
                self.held += storage.nbytes()
        self.most = max(self.most, self.held)
        return out

    def _free(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.held -= size


def real_step(plan: Plan) -> int:
    """Bytes at the peak of a real step on the largest micro-batch, without weights, adapter and optimiser."""
    spec, collator = plan.spec, plan.work.collator
    model = load_model(spec.files, precision=spec.weights_precision, device="cpu")
    kernels = spec.recipe.hardware.kernels
    packed, _ = choose_packing(model, collator.train, "cpu", kernels=kernels)
    assert (packed, packed and uses_varlen_attention(model)) == (collator.packed, collator.shared)
    model = attach_adapter(model, spec.recipe.lora, seed=0, files=spec.files, kernels=kernels).train()
    examples = [collator.train[number] for number in plan.work.largest_microbatch]
    summed_loss(model, collator.batch(examples), kernels=kernels).backward()  # libraries set something aside when they are first used
    model.zero_grad()
    batch, peak = collator.batch(examples), RealPeak(model)
    with peak:
        summed_loss(model, batch, kernels=kernels).backward()
    return peak.most


def of_step(training: Memory) -> int:
    return sum(training[part] for part in ("gradients", "activations", "logits"))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", ()),
        ("llama", ("precision=nf4",)),
        ("llama", ("precision=int8",)),
        ("llama", ("lora.method=dora",)),
        ("llama", ("lora.method=full",)),
        ("llama", ("lora.dropout=0.1", "precision=bfloat16")),
        ("llama", ("hardware.kernels=plain",)),
        ("gemma3_text", ()),  # a sliding window, tied embeddings
        ("gpt2", ()),
        ("bloom", ()),  # padded: packed examples would mix
    ],
)
def test_the_trace_holds_what_a_real_step_holds(tmp_path: Path, architecture: str, changes: tuple[str, ...]) -> None:
    plan = make_tiny_plan(tmp_path, "precision=float32", *changes, *ONE_PASS, architecture=architecture)
    assert plan.work.collator.packed == (architecture != "bloom")
    assert of_step(plan.phases["training"]) == pytest.approx(real_step(plan), rel=TOLERANCE)


def test_a_model_trained_in_full_holds_gradients_and_states_of_every_parameter(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path, "lora.method=full", "precision=float32", "train.batch_tokens=512")
    total, training = 4 * plan.spec.counts.base_parameters, plan.phases["training"]
    assert any(len(step) > 1 for step in plan.work.schedule.steps)  # so that gradients exist all the time
    assert training["weights"] == pytest.approx(total, rel=0.001) and training["adapter"] == 0  # and buffers
    assert training["optimiser"] == 2 * total and training["gradients"] == pytest.approx(total, rel=0.001)


def test_the_heap_keeps_a_share_of_blocks_that_are_not_returned_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_tiny_plan(tmp_path, "precision=float32", *ONE_PASS)
    step, gradients = of_step(plan.phases["training"]), 4 * plan.spec.counts.trainable
    assert 0.4 * step <= plan.phases["training"]["heap"] <= 0.4 * (step + gradients) + 1
    monkeypatch.setattr(memory, "HEAP_BLOCK", 0)
    assert not training_memory(plan.spec, plan.work)["heap"]


def test_adapter_checks_hold_the_base_twice(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path, "precision=float32")
    training, checks = plan.phases["training"], plan.phases["adapter checks"]
    assert checks - training == {part: training[part] for part in ("weights", "adapter")}


def test_scoring_holds_the_cache_of_answers_as_long_as_allowed(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path, "precision=float32")
    text = plan.spec.config
    per_token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    work = replace(plan.work, largest_requests=(Request("a", tuple(range(5, 25)), (1, 2, 3)),) * 4)
    recipe = plan.spec.recipe
    short, long = (
        scoring_memory(replace(plan.spec, recipe=recipe.model_copy(update={"eval": recipe.eval.model_copy(update=change)})), work)
        for change in ({"max_new_tokens": 500}, {"max_new_tokens": 1500})
    )
    assert long["cache"] - short["cache"] == 4 * 1000 * per_token


def test_scoring_loads_a_second_base_where_the_adapter_cannot_be_switched_off(tmp_path: Path) -> None:
    lora, full = (make_tiny_plan(tmp_path, f"lora.method={method}", "precision=float32") for method in ("lora", "full"))
    assert full.phases["scoring"]["weights"] == 2 * lora.phases["scoring"]["weights"]

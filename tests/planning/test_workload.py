"""The work that a plan is made for: what rows, batches and the architecture decide before any weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.evaluation.prefill import Request, enable_packed_prefill
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.base import load_model, load_tokenizer
from nomoat.planning.workload import TRAINING_BYTES, probe_architecture, rough_bytes
from nomoat.training.collate import choose_packing
from tests.planning.test_memory import make_tiny_plan
from tests.tiny import SIZES, make_base, make_rows


@pytest.mark.parametrize("architecture", sorted(SIZES))
def test_what_only_the_architecture_decides_is_seen_without_its_weights(tmp_path: Path, architecture: str) -> None:
    files = make_base(tmp_path, architecture)
    template = ChatTemplate(load_tokenizer(files))
    examples = [template.render(row) for row in make_rows(3)]
    requests = [Request(example.row_id, example.prompt_ids, example.completion_ids) for example in examples[:2]]
    model, other = (load_model(files, precision="float32", device="cpu") for _ in range(2))
    packed, _ = choose_packing(model, examples, "cpu")
    expected = packed, packed and uses_varlen_attention(model), enable_packed_prefill(other, requests)
    config = AutoConfig.from_pretrained(files.folder)
    assert probe_architecture(config, "cpu") == expected
    assert probe_architecture(config, "cpu", kernels="plain")[1:] == (False, False)
    assert not probe_architecture(config, "cuda")[2]


def test_long_batches_and_batches_of_many_labels_are_large() -> None:
    config = AutoConfig.for_model("llama", **SIZES["llama"], vocab_size=50_000)
    short, long = TokenizedExample("a", (1,) * 10, (1,) * 2), TokenizedExample("b", (1,) * 90, (1,) * 2)
    wordy = TokenizedExample("c", (1,) * 10, (1,) * 40)

    def size(*examples: TokenizedExample, padded: bool = False) -> int:
        return rough_bytes(config, examples, padded=padded, activations=TRAINING_BYTES)

    assert size(short) < size(long) < size(wordy)
    assert size(short, long) < size(short, long, padded=True)


def test_the_largest_batches_are_planned_for(tmp_path: Path) -> None:
    work = make_tiny_plan(tmp_path, "eval.batch_rows=4", "precision=float32").work
    tokens = [sum(work.collator.train[number].length for number in pack) for step in work.schedule.steps for pack in step]
    largest = sum(work.collator.train[number].length for number in work.largest_microbatch)
    assert largest >= 0.9 * max(tokens)
    lengths = [len(request.prompt) for request in work.largest_requests]
    assert len(lengths) == 4 and min(lengths) > 2 * max(example.length for example in work.collator.train)  # few_shot's


def test_without_a_tokenizer_tokens_are_estimated_with_a_note(tmp_path: Path) -> None:
    whole = make_tiny_plan(tmp_path)
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    from nomoat.planning.plan import make_plan
    from tests.stories import ROOT

    plan = make_plan(whole.spec.recipe, ROOT)
    assert any("tokens are estimated" in note for note in plan.notes) and not any("estimated" in note for note in whole.notes)
    assert len(plan.work.collator.train) == len(whole.work.collator.train)
    assert 0.2 * whole.work.tokens < plan.work.tokens < whole.work.tokens


def test_leaking_rows_are_planned_with_a_note_that_training_refuses_them(tmp_path: Path) -> None:
    clean = make_tiny_plan(tmp_path)
    same = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun"
    lines = [json.dumps({"prompt": f"{n}: {same} {n}", "completion": str(n)}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    from nomoat.planning.plan import make_plan
    from tests.stories import ROOT

    refused = make_plan(clean.spec.recipe, ROOT)
    assert any("will refuse" in note for note in refused.notes) and not any("refuse" in note for note in clean.notes)
    accepted = clean.spec.recipe.data.model_copy(update={"allow_leaks": "a test"})
    assert not any("refuse" in note for note in make_plan(clean.spec.recipe.model_copy(update={"data": accepted}), ROOT).notes)

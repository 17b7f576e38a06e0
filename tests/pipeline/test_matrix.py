"""Twelve architectures through the whole of a run: recipe, training, gate, scoring, reload. No line of the code knows their names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from nomoat.config.load import load_recipe
from nomoat.config.schema import Lora
from nomoat.evaluation.chat import open_chat
from nomoat.io import sha256_file
from nomoat.pipeline.finetune import open_finetune
from nomoat.pipeline.run_spec import make_run_spec
from nomoat.reports.build import read_report
from tests.private import find_private_strings
from tests.stories import RECIPE, ROOT
from tests.tiny import SIZES, make_base, make_rows, write_user_rows

WORDS = {"pieces": True, "bos": "<s>", "pad": None}  # SentencePiece-like: begins with BOS, has no token for padding
BYTES: dict[str, Any] = {}
BARE = {"template": None, "pad": None}  # a base that was never taught to chat
TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama": WORDS,
    "qwen2": BYTES,
    "qwen3": BYTES,
    "mistral": WORDS,
    "gemma3_text": {**WORDS, "template": None, "pad": "<|pad|>"},
    "gpt2": BARE,
    "gpt_neox": BARE,
    "stablelm": BYTES,
    "phi3": {**WORDS, "bos": None},
    "falcon": BARE,
    "bloom": {**BARE, "pad": "<|pad|>", "bos": "<s>"},
    "opt": {**BARE, "bos": "</s>", "pad": "<|pad|>"},
}
MIX_PACKED_ROWS = {"falcon", "bloom"}  # OPT does so with stock attention, and not with ours, which keeps rows apart
SMALL = ("llama", "gpt2", "bloom")  # for `make test`


def cases() -> list[Any]:
    return [pytest.param(name, marks=[] if name in SMALL else [pytest.mark.slow]) for name in TOKENIZERS]


def run_recipe(folder: Path, *overrides: str) -> Path:
    """What train/sft.py does, in this process: starting twelve would take longer than they run."""
    from rich.console import Console

    spec = make_run_spec(load_recipe(folder / "tiny.yaml", ["train.epochs=6", *overrides]), ROOT)
    with open_finetune(spec, folder / "runs", Console(file=io.StringIO())) as run:
        base = run.load_base()
        data = run.prepare_data(base)
        trainee = run.attach_adapter(base)
        run.train(trainee, data)
        gate = run.score(run.check_adapter(trainee, data), data.tokenized)
        assert gate.passed, gate.checks
        run.write_report()
        return run.folder


def linear_layers(model: Any) -> int:
    """Layers that LoRA can sit on, the head left out: torch's linears and GPT-2's own kind."""
    head = model.get_output_embeddings()
    return sum(type(module).__name__ in ("Linear", "Conv1D", "FalconLinear") and module is not head for module in model.modules())


@pytest.mark.parametrize("architecture", cases())
def test_an_architecture_goes_from_recipe_to_report(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path / "cache"))
    make_base(tmp_path / "model", architecture, **TOKENIZERS[architecture])
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run_dir = run_recipe(tmp_path)
    report = read_report(run_dir / "report.json")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapted = sum(".lora_A." in name for name in saved_tensors(run_dir / "adapter"))
    assert adapted == linear_layers(base), "every linear layer but the head is adapted"
    packing = json.loads((run_dir / "rows.json").read_text())["packing"]
    assert packing["packed"] == (architecture not in MIX_PACKED_ROWS), packing["reason"]
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert tied == bool(base.config.tie_word_embeddings) and len(base.get_input_embeddings().weight) == base.config.vocab_size
    assert all(report.arms[arm].tiers["phrasing"].n > 0 for arm in ("base", "few_shot", "adapter"))
    assert not any("embed" in name or "lm_head" in name for name in saved_tensors(run_dir / "adapter"))


def saved_tensors(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("architecture", cases())
def test_a_row_learnt_by_heart_ends_by_itself(tmp_path: Path, architecture: str) -> None:
    """An end-of-turn token that is masked, doubled or never asked for would show here."""
    import torch

    from nomoat.data.chat_template import ChatTemplate
    from nomoat.evaluation.generate import Generator
    from nomoat.evaluation.prefill import Request
    from nomoat.models.adapter import attach_adapter
    from nomoat.models.base import load_model, load_tokenizer
    from nomoat.training.collate import collate_padded, summed_loss

    files = make_base(tmp_path / "model", architecture, **TOKENIZERS[architecture])
    talk = ChatTemplate(load_tokenizer(files))
    [row] = make_rows(1)
    rendered = talk.render(row)
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), Lora(rank=8, alpha=64), seed=0, files=files)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batch = collate_padded([rendered], talk.pad_id)
    for _ in range(100):
        optimiser.zero_grad()
        summed_loss(model, batch).backward()
        optimiser.step()
    limit = len(rendered.completion_ids) + 8
    question = Request(row.id, rendered.prompt_ids, rendered.completion_ids)
    [answer], _ = Generator(model.eval(), talk, max_new_tokens=limit).answer([question])
    assert answer.stopped and talk.decode(list(answer.ids)) == row.completion


def test_every_architecture_has_a_size_and_a_tokenizer() -> None:
    assert set(TOKENIZERS) == set(SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rslora", "dora", "pissa"])
def test_a_method_goes_from_recipe_to_report(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path / "cache"))
    make_base(tmp_path / "model", "llama")
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run_dir = run_recipe(tmp_path, f"lora.method={method}", "lora.rank=8")
    config = json.loads((run_dir / "adapter" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["r"]) == (method == "dora", method == "rslora", 16 if method == "pissa" else 8)


@pytest.mark.parametrize(("architecture", "precision"), [("llama", "bfloat16"), ("gemma3_text", "float32")])  # the second is tied
def test_a_base_trained_in_full_goes_from_recipe_to_report_and_loads_with_transformers_alone(
    tmp_path: Path, architecture: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path / "cache"))
    make_base(tmp_path / "model", architecture, **TOKENIZERS[architecture])
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run_dir = run_recipe(tmp_path, "lora.method=full", f"precision={precision}", "eval.arms=[base,few_shot,adapter,merged]")
    report = read_report(run_dir / "report.json")
    folder, facts = run_dir / "adapter", report.adapter
    weights = folder / "model.safetensors"
    assert (facts.method, facts.rank, facts.parameters) == ("full", None, facts.base_parameters)
    assert (facts.bytes, facts.sha256) == (weights.stat().st_size, sha256_file(weights))
    tuned, base = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (folder, tmp_path / "model"))
    tied = tuned.get_output_embeddings().weight is tuned.get_input_embeddings().weight
    assert tied == base.config.tie_word_embeddings == (architecture == "gemma3_text")
    moved = {name: bool((tensor != base.state_dict()[name]).any()) for name, tensor in tuned.state_dict().items()}
    assert all(moved.values()), moved
    assert find_private_strings(folder, [str(tmp_path)]) == []
    chat = open_chat(run_dir, device="cpu", max_new_tokens=4)
    assert chat.stream("add 1 to 7", "base", lambda _: None) != chat.stream("add 1 to 7", "adapter", lambda _: None)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "method"),
    [*((precision, "lora") for precision in ("float32", "bfloat16", "float16", "int8", "nf4")), ("float32", "full"), ("bfloat16", "full")],
)
def test_every_precision_goes_from_recipe_to_report_on_a_gpu(
    tmp_path: Path, precision: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOMOAT_CACHE", str(tmp_path / "cache"))
    make_base(tmp_path / "model", "llama")
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    report = read_report(run_recipe(tmp_path, f"precision={precision}", f"lora.method={method}", "hardware.device=cuda") / "report.json")
    assert report.provenance.dtype == precision and report.cost.peak_device_bytes

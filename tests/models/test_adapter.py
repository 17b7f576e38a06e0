"""Adapters: seeded, fully matched, and saved so that peft alone loads them without naming this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError
from nomoat.models.adapter import (
    adapter_size,
    adapter_tensors,
    add_tokenizer_and_card,
    attach_adapter,
    fingerprint,
    load_adapter,
    save_adapter,
)
from nomoat.models.base import BaseFiles, load_model, load_tokenizer
from tests.tiny import make_base


def attach(files: BaseFiles, *, seed: int = 0, **options: object) -> object:
    return attach_adapter(load_model(files, precision="float32", device="cpu"), Lora(**options), seed=seed, files=files)


def test_the_seed_alone_decides_the_initial_weights(tmp_path: Path) -> None:
    files = make_base(tmp_path)
    torch.manual_seed(99)
    first = fingerprint(adapter_tensors(attach(files)))
    torch.rand(7)
    assert fingerprint(adapter_tensors(attach(files))) == first
    assert fingerprint(adapter_tensors(attach(files, seed=1))) != first


def test_all_linear_layers_but_the_head_are_adapted(tmp_path: Path) -> None:
    size = adapter_size(attach(make_base(tmp_path), rank=4))
    assert size.modules == 2 * 7  # two layers of q, k, v, o, gate, up, down
    per_layer = 4 * (64 * 4 + 64 + 64 + 32 + 32 + 2 * (64 + 128) + (128 + 64))  # rank * (inputs + outputs) of each
    assert size.parameters == 2 * per_layer


def test_a_target_that_matches_nothing_is_an_error_that_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match=r"'q_porj' \(near: q_proj"):
        attach(make_base(tmp_path), targets=("v_proj", "q_porj"))


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_a_saved_adapter_reloads_bit_for_bit(tmp_path: Path, method: str) -> None:
    files = make_base(tmp_path / "base")
    model = attach(files, rank=4, method=method)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(model, tmp_path / "adapter", files)
    reloaded = load_adapter(load_model(files, precision="float32", device="cpu"), tmp_path / "adapter")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model.eval()(ids).logits, reloaded(ids).logits)


def test_the_adapter_folder_names_the_base_and_not_this_machine(tmp_path: Path) -> None:
    files = make_base(tmp_path / "some-model")
    save_adapter(attach(files), tmp_path / "adapter", files)
    add_tokenizer_and_card(tmp_path / "adapter", load_tokenizer(files), files)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "some-model"
    for file in (tmp_path / "adapter").iterdir():
        assert str(tmp_path) not in file.read_bytes().decode("utf-8", "ignore"), file.name


def test_peft_alone_loads_the_folder_in_a_process_without_this_project(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    save_adapter(attach(files), tmp_path / "adapter", files)
    add_tokenizer_and_card(tmp_path / "adapter", load_tokenizer(files), files)
    code = f"""
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained({str(files.folder)!r})
PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r})
assert AutoTokenizer.from_pretrained({str(tmp_path / "adapter")!r}).chat_template
assert not any(name.startswith("nomoat") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_pissa_adapter_is_saved_as_the_plain_lora_that_does_the_same(tmp_path: Path) -> None:
    files = make_base(tmp_path / "model")
    ids = torch.tensor([[5, 9, 12, 40]])
    base = load_model(files, precision="float32", device="cpu")
    with torch.no_grad():
        untouched = base(ids).logits
    model = attach_adapter(base, Lora(rank=4, alpha=8, method="pissa"), seed=0, files=files)
    start = adapter_tensors(model)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, untouched, atol=1e-5), "it begins as the base"
        for tensor in (tensor for tensor in model.parameters() if tensor.requires_grad):
            tensor += 0.05 * torch.randn_like(tensor)
        trained = model(ids).logits
    save_adapter(model, tmp_path / "adapter", files, start=start)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["init_lora_weights"]) == (8, 16, True)
    reloaded = load_adapter(load_model(files, precision="float32", device="cpu"), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(reloaded(ids).logits, trained, atol=1e-5) and not torch.allclose(trained, untouched, atol=1e-2)

"""Adapters: seeded, fully matched, saved so that peft alone loads them without naming this machine, and continued from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError
from nomoat.io import read_json, sha256_file, write_json
from nomoat.models.adapter import (
    CONFIG,
    FULL,
    adapter_facts,
    adapter_size,
    adapter_tensors,
    add_tokenizer_and_card,
    attach_adapter,
    check_tensor_shapes,
    fingerprint,
    load_adapter,
    restore_adapter,
    save_adapter,
    warm_start_folder,
    weights_of,
)
from nomoat.models.base import BaseFiles, load_model, load_tokenizer
from nomoat.reports.build import read_report
from tests.stories import adapter_sha, make_workplace, only_run, run
from tests.tiny import make_base

METHODS = ("lora", "rslora", "dora", FULL)
IDS = torch.tensor([[5, 9, 12, 40]])


def load(files: BaseFiles, precision: str = "float32") -> Any:
    return load_model(files, precision=precision, device="cpu")


def attach(files: BaseFiles, *, seed: int = 0, precision: str = "float32", **lora: Any) -> Any:
    return attach_adapter(load(files, precision), Lora(**lora), seed=seed, files=files)


def trained(files: BaseFiles, **lora: Any) -> Any:
    """An adapter (or a whole model) whose every tensor has moved."""
    model = attach(files, **lora)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor += 0.05 * torch.randn_like(tensor)
    return model.eval()


def test_the_seed_alone_decides_the_initial_weights(tmp_path: Path) -> None:
    files = make_base(tmp_path)
    torch.manual_seed(99)
    first = fingerprint(adapter_tensors(attach(files)))
    torch.rand(7)
    assert fingerprint(adapter_tensors(attach(files))) == first
    assert fingerprint(adapter_tensors(attach(files, seed=1))) != first


def test_plain_kernels_start_from_the_same_weights(tmp_path: Path) -> None:
    files = make_base(tmp_path)
    plain = attach_adapter(load(files), Lora(), seed=0, files=files, kernels="plain")
    assert fingerprint(adapter_tensors(plain)) == fingerprint(adapter_tensors(attach(files)))


@pytest.mark.parametrize("precision", ["float32", "nf4"])
def test_all_linear_layers_except_the_head_are_adapted_and_counted(tmp_path: Path, precision: str) -> None:
    files = make_base(tmp_path)
    size = adapter_size(attach(files, precision=precision, rank=4))
    assert size.modules == 2 * 7  # two layers of q, k, v, o, gate, up, down
    per_layer = 4 * (64 * 4 + 64 + 64 + 32 + 32 + 2 * (64 + 128) + (128 + 64))  # rank * (inputs + outputs) of each
    assert size.parameters == 2 * per_layer
    assert size.base_parameters == sum(tensor.numel() for tensor in load(files).parameters())


def test_of_a_whole_model_everything_is_trained_and_counted_once(tmp_path: Path) -> None:
    model = attach(make_base(tmp_path), method=FULL)
    size = adapter_size(model)
    assert size.parameters == size.base_parameters == sum(tensor.numel() for tensor in model.parameters())
    assert all(tensor.requires_grad for tensor in model.parameters())


def test_a_target_that_matches_nothing_is_an_error_that_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match=r"lora.targets: 'q_porj' is not a linear module .* did you mean 'q_proj'\? \(allowed: down_proj"):
        attach(make_base(tmp_path), targets=("v_proj", "q_porj"))


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_reloads_and_is_restored_bit_for_bit(tmp_path: Path, method: str) -> None:
    files = make_base(tmp_path / "base")
    model = trained(files, rank=4, method=method)
    save_adapter(model, tmp_path / "adapter", files)
    reloaded = load_adapter(load(files), tmp_path / "adapter")
    assert torch.equal(model(IDS).logits, reloaded(IDS).logits) and not reloaded.training
    fresh = attach(files, rank=4, method=method, seed=3).eval()
    assert not torch.equal(fresh(IDS).logits, reloaded(IDS).logits)
    restore_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(IDS).logits, reloaded(IDS).logits)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match=r"has no adapter_model.safetensors: not a finished adapter"):
        load_adapter(load(make_base(tmp_path / "base")), tmp_path)


@pytest.mark.parametrize("method", ["lora", FULL])
def test_the_folder_names_the_base_and_not_this_machine(tmp_path: Path, method: str) -> None:
    files = make_base(tmp_path / "some-model")
    save_adapter(attach(files, method=method), tmp_path / "adapter", files)
    add_tokenizer_and_card(tmp_path / "adapter", load_tokenizer(files), files)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model: some-model" in card and ("PeftModel" in card) is (method == "lora")
    assert method == FULL or read_json(tmp_path / "adapter" / CONFIG)["base_model_name_or_path"] == "some-model"
    for file in (tmp_path / "adapter").iterdir():
        assert str(tmp_path) not in file.read_bytes().decode("utf-8", "ignore"), file.name


@pytest.mark.parametrize("method", ["lora", FULL])
def test_peft_or_transformers_alone_load_the_folder_in_a_process_without_this_project(tmp_path: Path, method: str) -> None:
    files = make_base(tmp_path / "base")
    model = trained(files, method=method)
    save_adapter(model, tmp_path / "adapter", files)
    add_tokenizer_and_card(tmp_path / "adapter", load_tokenizer(files), files)
    code = f"""
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
adapter = {str(tmp_path / "adapter")!r}
if {method != FULL}:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(files.folder)!r}), adapter)
else:
    model = AutoModelForCausalLM.from_pretrained(adapter)
assert AutoTokenizer.from_pretrained(adapter).chat_template
assert not any(name.startswith("nomoat") for name in sys.modules)
print(float(model.eval()(torch.tensor({IDS.tolist()})).logits.detach().double().sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(model(IDS).logits.detach().double().sum()), abs=1e-3)


def test_a_pissa_adapter_is_saved_as_the_lora_that_does_the_same(tmp_path: Path) -> None:
    files = make_base(tmp_path / "model")
    base = load(files)
    untouched = base(IDS).logits.detach()
    model = attach_adapter(base, Lora(rank=4, alpha=8, method="pissa"), seed=0, files=files)
    start = adapter_tensors(model)
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, untouched, atol=1e-5), "it starts as the base"
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor += 0.05 * torch.randn_like(tensor)
        expected = model(IDS).logits
    save_adapter(model, tmp_path / "adapter", files, start=start)
    saved = read_json(tmp_path / "adapter" / CONFIG)
    assert (saved["r"], saved["lora_alpha"], saved["init_lora_weights"]) == (8, 16, True)
    with torch.no_grad():
        reloaded = load_adapter(load(files), tmp_path / "adapter")(IDS).logits
    assert torch.allclose(reloaded, expected, atol=1e-5) and not torch.allclose(expected, untouched, atol=1e-2)


def test_the_facts_of_a_report_are_those_of_the_files(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    for lora in (Lora(rank=4, alpha=8), Lora(method=FULL)):
        folder = tmp_path / lora.method
        model = attach_adapter(load(files), lora, seed=0, files=files)
        save_adapter(model, folder, files)
        facts = adapter_facts(adapter_size(model), lora, folder, files)
        assert (facts.rank, facts.alpha) == ((4, 8) if lora.method == "lora" else (None, None))
        assert (facts.bytes, facts.sha256) == (weights_of(folder).stat().st_size, sha256_file(weights_of(folder)))
        assert facts.base_bytes_16bit == 2 * sum(tensor.numel() for tensor in load(files).parameters())


# warm start


def test_a_run_continues_from_another_runs_adapter(tmp_path: Path) -> None:
    folder = make_workplace(tmp_path)
    done = run(folder, "train/sft.py", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    first = only_run(folder)
    done = run(folder, "train/sft.py", "tiny.yaml", f"lora.start=runs/{first.name}", "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    (second,) = [path for path in (folder / "runs").iterdir() if path != first]
    report = read_report(second / "report.json")
    assert report.provenance.start_sha256 == adapter_sha(first)
    curves = [read_report(path / "report.json").learning_curve.validation for path in (first, second)]
    assert curves[1][0][1] == pytest.approx(curves[0][-1][1], rel=1e-6), "it starts where the first one ended"


def test_an_adapter_of_another_method_rank_alpha_or_base_is_not_continued_from(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    lora = Lora(rank=4, start=str(tmp_path / "adapter"))
    with pytest.raises(NomoatError, match="neither a finished run nor the folder of an adapter"):
        warm_start_folder(lora, files)
    save_adapter(attach(files, rank=4), tmp_path / "adapter", files)
    assert warm_start_folder(lora, files) == tmp_path / "adapter" and warm_start_folder(Lora(), files) is None
    for change, reason in (
        ({"rank": 8}, "rank 4 there, 8 here"),
        ({"alpha": 8.0}, "alpha 32 there, 8.0 here"),
        ({"method": "dora"}, "method lora there, dora here"),
        ({"method": FULL}, "method lora there, full here"),
    ):
        with pytest.raises(NomoatError, match=f"lora.start: cannot continue from .*adapter: {reason}"):
            warm_start_folder(lora.model_copy(update=change), files)
    config = read_json(tmp_path / "adapter" / CONFIG)
    write_json(tmp_path / "adapter" / CONFIG, {**config, "base_model_name_or_path": "another"})
    with pytest.raises(NomoatError, match="base another there, base here"):
        warm_start_folder(lora, files)


def test_a_whole_model_is_continued_from_in_full_only(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    save_adapter(attach(files, method=FULL), tmp_path / "adapter", files)
    lora = Lora(method=FULL, start=str(tmp_path / "adapter"))
    assert warm_start_folder(lora, files) == tmp_path / "adapter"
    with pytest.raises(NomoatError, match="method full there, lora here"):
        warm_start_folder(lora.model_copy(update={"method": "lora"}), files)


def test_every_tensor_needs_a_counterpart_of_its_shape(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    narrow = attach(files, rank=4, targets=("q_proj",))
    save_adapter(narrow, tmp_path / "adapter", files)
    assert check_tensor_shapes(narrow, tmp_path / "adapter") == 4  # A and B in two layers
    with pytest.raises(NomoatError, match=r"0 of its 4 tensors have no counterpart .* 24 of the model's are missing"):
        restore_adapter(attach(files, rank=4), tmp_path / "adapter")
    with pytest.raises(NomoatError, match=r"4 of its 4 tensors have no counterpart .* 0 of the model's are missing"):
        restore_adapter(attach(files, rank=8, targets=("q_proj",)), tmp_path / "adapter")
    fresh = attach(files, rank=4, targets=("q_proj",), seed=1)
    restore_adapter(fresh, tmp_path / "adapter")
    assert fingerprint(adapter_tensors(fresh)) == fingerprint(adapter_tensors(narrow))

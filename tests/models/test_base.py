"""Bases from the hub and from folders: pinned, checked, never unpickled, and a clear message where one cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.config.schema import Base
from nomoat.errors import NomoatError
from nomoat.models.adapter import add_tokenizer_and_card
from nomoat.models.base import fetch_base, load_model, load_tokenizer
from nomoat.models.device import has_bfloat16
from tests.tiny import make_base


def test_a_licence_is_accepted_before_anything_is_fetched_and_stays_with_the_base(tmp_path: Path) -> None:
    make_base(tmp_path / "model")
    own = {"name": "owl", "terms": "https://example.org/owl", "notice": "Owl is provided under the Owl Terms."}
    stated = {"path": str(tmp_path / "model"), "license": own}
    for seen in (None, "gemma"):
        with pytest.raises(NomoatError, match=r"base\.accept_license.*https://example\.org/owl.*base\.accept_license=owl"):
            fetch_base(Base.model_validate({**stated, "accept_license": seen}))
    files = fetch_base(Base.model_validate({**stated, "accept_license": "owl"}))
    assert files.identity["notice"] == own["notice"] and files.identity["license"] == "owl"
    add_tokenizer_and_card(tmp_path / "adapter", load_tokenizer(files), files)
    assert own["notice"] in (tmp_path / "adapter" / "NOTICE").read_text()


def test_a_hub_base_without_network_says_what_to_do() -> None:
    with pytest.raises(NomoatError, match=r"base\.hub: some/model at aaaaaaaaaaaa could not be fetched"):
        fetch_base(Base(hub="some/model", revision="a" * 40))


def test_a_folder_is_identified_by_its_weights_and_named_without_its_path(tmp_path: Path) -> None:
    first, again, other = (make_base(tmp_path / name / "model", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.name == again.name == "model" and first.identity == again.identity
    assert first.identity["sha256"] != other.identity["sha256"]
    assert str(tmp_path) not in str(first.identity)


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    make_base(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(NomoatError, match="other formats are not loaded"):
        fetch_base(Base(path=str(tmp_path)))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match=r"no config\.json"):
        fetch_base(Base(path=str(tmp_path)))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "torch.float32"), ("bfloat16", "torch.bfloat16")])
def test_a_base_is_loaded_frozen_and_does_not_remember_its_path(tmp_path: Path, precision: str, dtype: str) -> None:
    model = load_model(make_base(tmp_path / "model"), precision=precision, device="cpu")
    assert str(model.dtype) == dtype and not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.config._name_or_path == "model"


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_quantised_base_answers_close_to_the_16_bit_one(tmp_path: Path, precision: str) -> None:
    import torch

    files = make_base(tmp_path / "model")
    ids = torch.tensor([[5, 9, 12, 40]])
    with torch.no_grad():
        exact = load_model(files, precision="bfloat16", device="cpu")(ids).logits.float()
        quantised = load_model(files, precision=precision, device="cpu")
        near = quantised(ids).logits.float()
    native = torch.bfloat16 if has_bfloat16("cpu") else torch.float32  # products in emulated bfloat16 take many times as long
    assert quantised.get_input_embeddings().weight.dtype == native
    assert not torch.equal(exact, near)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), near.flatten(), dim=0) > 0.9

"""Two adapters added do together what each does alone, and the rank of the sum is that of the matrices multiplied out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Lora
from nomoat.errors import NomoatError
from nomoat.io import read_json, write_json
from nomoat.memo.runs import _rank_of, add_adapters, update_ranks
from nomoat.models.adapter import CONFIG, attach_adapter, load_adapter, save_adapter
from nomoat.models.base import BaseFiles, load_model
from tests.tiny import make_base


def make_adapter(files: BaseFiles, folder: Path, seed: int, lora: Lora) -> Any:
    """An adapter whose B is not zero, as after training."""
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), lora, seed=seed, files=files)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, folder, files)
    return model


@pytest.fixture
def pair(tmp_path: Path) -> tuple[BaseFiles, Path, Path]:
    files = make_base(tmp_path / "base")
    make_adapter(files, tmp_path / "a", 1, Lora(rank=3, alpha=12))
    make_adapter(files, tmp_path / "b", 2, Lora(rank=2, alpha=2, method="rslora"))
    return files, tmp_path / "a", tmp_path / "b"


def updates(files: BaseFiles, folder: Path) -> dict[str, Any]:
    """By weight, what merging the adapter changes."""
    base = dict(load_model(files, precision="float32", device="cpu").named_parameters())
    merged = load_adapter(load_model(files, precision="float32", device="cpu"), folder).merge_and_unload()
    changed = {name: value.detach() - base[name].detach() for name, value in merged.named_parameters()}
    return {name: change for name, change in changed.items() if change.abs().max() > 0}


def test_the_sum_changes_the_base_by_what_both_change_it(pair: tuple[BaseFiles, Path, Path], tmp_path: Path) -> None:
    files, a, b = pair
    add_adapters(a, b, tmp_path / "sum")
    ours, theirs, both = (updates(files, folder) for folder in (a, b, tmp_path / "sum"))
    assert ours.keys() == theirs.keys() == both.keys() and len(both) > 4
    for name in both:
        torch.testing.assert_close(both[name], ours[name] + theirs[name], rtol=0, atol=1e-6)
    assert read_json(tmp_path / "sum" / CONFIG)["r"] == 5


def test_ranks_are_those_of_the_products(pair: tuple[BaseFiles, Path, Path]) -> None:
    _, a, b = pair
    found = update_ranks(a, b)
    assert all((one["a"], one["b"], one["sum"]) == (3, 2, 5) for one in found["modules"]) and len(found["modules"]) > 4
    alone = update_ranks(a, a)
    assert all(one["sum"] == one["a"] == 3 for one in alone["modules"]), "the same update twice has no higher rank"


def test_the_rank_agrees_with_a_decomposition_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    up, down = torch.randn(40, 8, dtype=torch.float64), torch.randn(8, 30, dtype=torch.float64)
    up *= torch.logspace(0, -6, 8, dtype=torch.float64)  # some below the threshold
    values = torch.linalg.svdvals(up @ down)
    assert _rank_of(up, down) == int((values > 1e-3 * values[0]).sum()) < 8
    assert _rank_of(torch.zeros(4, 2), torch.zeros(2, 4)) == 0


def test_what_cannot_be_added_is_refused(pair: tuple[BaseFiles, Path, Path], tmp_path: Path) -> None:
    files, a, b = pair
    make_adapter(files, tmp_path / "few", 1, Lora(rank=3, targets=("q_proj",)))
    with pytest.raises(NomoatError, match="do not adapt the same modules"):
        update_ranks(a, tmp_path / "few")
    write_json(b / CONFIG, {**read_json(b / CONFIG), "base_model_name_or_path": "another"})
    with pytest.raises(NomoatError, match=r"different bases \(base, another\)"):
        add_adapters(a, b, tmp_path / "sum")
    write_json(b / CONFIG, {**read_json(b / CONFIG), "use_dora": True})
    with pytest.raises(NomoatError, match="only plain LoRA"):
        update_ranks(a, b)
    assert not (tmp_path / "sum").exists()

"""The gate catches what looks like success elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Lora
from nomoat.data.chat_template import ChatTemplate
from nomoat.models.adapter import WEIGHTS, adapter_tensors, attach_adapter, load_adapter, save_adapter
from nomoat.models.base import BaseFiles, load_model, load_tokenizer
from nomoat.reports.schema import Check, Gate
from nomoat.training.adapter_checks import check_effect, check_outputs, check_tensors, probe, probe_logits
from nomoat.training.collate import Collator, count_labels, summed_loss
from tests.tiny import make_base, make_rows


class Trained:
    """A tiny base with an adapter that has taken a few real steps, saved to disk."""

    def __init__(self, folder: Path, *, steps: int = 20, uphill: bool = False) -> None:
        self.files: BaseFiles = make_base(folder / "base")
        talk = ChatTemplate(load_tokenizer(self.files))
        rendered = [talk.render(row) for row in make_rows(8)]
        self.rows = Collator(rendered, rendered, True, talk.pad_id, 256)
        self.model: Any = attach_adapter(self.fresh(), Lora(rank=4), seed=0, files=self.files)
        self.initial = adapter_tensors(self.model)
        self.folder = folder / "adapter"
        self.take_steps(steps, uphill=uphill)
        save_adapter(self.model, self.folder, self.files)

    def fresh(self) -> Any:
        return load_model(self.files, precision="float32", device="cpu")

    def take_steps(self, steps: int, *, uphill: bool = False) -> None:
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-2, maximize=uphill)
        batches = self.rows.batches([range(8)])
        for _ in range(steps):
            (summed_loss(self.model, batches[0]) / count_labels(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def checks(self, *, expect_no_gain: bool = False) -> dict[str, Check]:
        base = self.fresh()
        untouched = probe(base, self.rows)
        reloaded = probe(load_adapter(base, self.folder), self.rows)
        trained = probe_logits(self.model.eval(), self.rows.train)
        found = check_tensors(self.folder, self.initial)
        found += check_effect(untouched, reloaded, trained, expect_no_gain=expect_no_gain)
        return {check.name: check for check in found}


def test_an_adapter_that_learnt_passes_every_check(tmp_path: Path) -> None:
    assert all(check.passed for check in Trained(tmp_path).checks().values())


def test_an_adapter_that_never_moved_fails_three_checks(tmp_path: Path) -> None:
    checks = Trained(tmp_path, steps=0).checks()
    assert {name for name, check in checks.items() if not check.passed} == {"every tensor moved", "changes the logits", "lowers the loss"}


def test_a_file_without_tensors_fails(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trained = Trained(tmp_path)
    save_file({}, trained.folder / WEIGHTS)  # what a broken save leaves: a valid file with nothing in it
    checks = {check.name: check for check in check_tensors(trained.folder, trained.initial)}
    assert not checks["complete"].passed and not checks["every tensor moved"].passed


def test_one_missing_module_one_nan_and_one_unmoved_tensor_are_each_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trained = Trained(tmp_path)
    saved = load_file(trained.folder / WEIGHTS)
    names = sorted(saved)
    del saved[names[0]]
    saved[names[1]][0, 0] = float("nan")
    saved[names[2]] = trained.initial[names[2]].clone()
    save_file(saved, trained.folder / WEIGHTS)
    checks = check_tensors(trained.folder, trained.initial)
    assert [check.passed for check in checks] == [False, False, False]
    assert [check.example for check in checks] == names[:3]
    assert (checks[0].value, checks[0].threshold, checks[1].value) == (len(names) - 1, len(names), 1)


def test_an_adapter_that_raises_the_loss_fails_unless_no_gain_is_expected(tmp_path: Path) -> None:
    trained = Trained(tmp_path, steps=5, uphill=True)
    assert not trained.checks()["lowers the loss"].passed
    finding = trained.checks(expect_no_gain=True)["lowers the loss"]
    assert finding.passed and finding.excused and (finding.value or 0) > (finding.threshold or 0)


def test_a_file_that_is_not_what_was_trained_fails(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    trained.take_steps(5)  # memory moves on, the file stays
    assert not trained.checks()["changes the logits"].passed


@pytest.mark.parametrize(("output", "passed"), [("same", False), ("other", True)])
def test_a_base_returned_unchanged_fails(output: str, passed: bool) -> None:
    base = [{"output": "same"}, {"output": "same"}]
    check = check_outputs(base, [{"output": "same"}, {"output": output}], expect_no_gain=False)
    assert check.passed is passed


def test_all_checks_must_pass() -> None:
    good, bad = Check(name="a", passed=True), Check(name="b", passed=False)
    assert Gate.of([good]).passed and not Gate.of([good, bad]).passed
    assert Gate.of([good, bad]).check("b") == bad and Gate.of([good]).check("b") is None

"""Estimates and real steps next to each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nomoat.config.load import load_recipe
from nomoat.errors import NomoatError
from nomoat.planning import measure as module
from nomoat.planning.measure import measure
from nomoat.planning.plan import make_plan
from tests.planning.test_memory import make_tiny_plan
from tests.stories import ROOT, make_workplace, run


def test_measuring_shows_both_and_a_speed(tmp_path: Path) -> None:
    make_workplace(tmp_path)
    done = run(tmp_path, "train/plan.py", "tiny.yaml", "--measure", "lora.rank=4")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for words in ("estimated measured ratio", "the rest", "tokens per second, measured here", "no rate is known"):
        assert words in said, words
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_known_exactly_is_measured_as_it_was_estimated(tmp_path: Path, method: str) -> None:
    plan = make_tiny_plan(tmp_path, f"lora.method={method}", "precision=float32", "hardware.threads=1")
    measured = measure(plan.spec, plan.work)
    training = measured.phases["training"]
    for part in ("weights", "adapter", "optimiser"):
        assert training[part] == pytest.approx(plan.phases["training"][part], rel=0.01), part
    assert training["the rest"] > 0 and measured.tokens_per_second > 0


def die(*_: object) -> None:
    os._exit(9)


def test_a_measuring_process_that_is_killed_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_tiny_plan(tmp_path)
    monkeypatch.setattr(module, "_measure", die)
    with pytest.raises(NomoatError, match="lack of memory"):
        measure(plan.spec, plan.work)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["precision=float32", "precision=nf4", "lora.method=full"])
def test_the_plan_of_the_default_recipe_is_as_measured(change: str) -> None:
    plan = make_plan(load_recipe(ROOT / "recipes" / "smollm2-135m.yaml", [change]), ROOT)
    measured = measure(plan.spec, plan.work)
    assert plan.phases["training"].total() == pytest.approx(measured.phases["training"].total(), rel=0.1)
    assert plan.phases["loading"].total() == pytest.approx(measured.phases["loading"].total(), rel=0.15)
    for part in ("weights", "adapter", "optimiser"):
        assert plan.phases["training"][part] == pytest.approx(measured.phases["training"][part], rel=0.001), part
    assert measured.tokens_per_second > 0


@pytest.mark.gpu
@pytest.mark.parametrize("change", ["precision=bfloat16", "precision=nf4", "lora.method=full"])
def test_the_plan_of_the_default_recipe_is_as_measured_on_a_gpu(change: str) -> None:
    plan = make_plan(load_recipe(ROOT / "recipes" / "smollm2-135m.yaml", [change, "hardware.device=cuda"]), ROOT)
    measured = measure(plan.spec, plan.work)
    assert plan.phases["training"].total() == pytest.approx(measured.phases["training"].total(), rel=0.1)

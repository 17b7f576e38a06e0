"""The scoring benchmark: the same answers as `model.generate`, and a close look at those that differ.

`tests/pipeline/test_stories.py` runs it on a finished run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.benchmarks.generation import _difference, summary
from nomoat.errors import NomoatError
from nomoat.evaluation.prefill import Request
from nomoat.models.base import load_model
from tests.tiny import make_base


def entry(arm: str, gaps: list[float], seconds: float, generate_seconds: float) -> dict[str, Any]:
    differences = [{"row": "r", "token": 0, "gap": gap} for gap in gaps]
    return {"arm": arm, "rows": 4, "seconds": seconds, "generate_seconds": generate_seconds, "differences": differences}


def test_all_arms_are_summed_up() -> None:
    found = summary([entry("base", [], 1.0, 3.0), entry("adapter", [1e-5, 2e-4], 3.0, 7.0)])
    assert (found["ratio"], found["rows"], found["identical"], found["largest_gap"]) == (2.5, 8, 0.75, 2e-4)
    assert list(found["arms"]) == ["base", "adapter"]
    assert summary([entry("base", [], 1.0, 3.0)])["largest_gap"] == 0.0
    with pytest.raises(NomoatError, match=r"eval\.arms"):
        summary([])


def test_a_difference_is_where_answers_diverge_and_how_close_the_call_was(tmp_path: Path) -> None:
    model = load_model(make_base(tmp_path), precision="float32", device="cpu")
    found = _difference(model, Request("r", (5, 6, 7), (8,)), (9, 10, 11), (9, 10))
    with torch.inference_mode():
        first, second = model(torch.tensor([[5, 6, 7, 9, 10]])).logits[0, -1].topk(2).values.tolist()
    assert (found["row"], found["token"]) == ("r", 2) and found["gap"] == pytest.approx(first - second, abs=1e-6)
    assert _difference(model, Request("r", (5, 6, 7), (8,)), (9, 10, 11), (12, 10, 11))["token"] == 0

"""A recipe on a tiny base and a few rows, as the tests of the training benchmark use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nomoat.benchmarks.peers import BenchWork
from nomoat.benchmarks.training import make_work
from nomoat.config.schema import Base, Recipe
from tests.tiny import make_base, write_user_rows

SIZE = {"turns": 2, "steps_per_turn": 2, "warmup_steps": 1}


def make_recipe(folder: Path, *, tokenizer: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A recipe with steps of at most 256 tokens on a freshly written base."""
    files = make_base(folder / "base", **(tokenizer or {}))
    write_user_rows(folder / "rows.jsonl", 60)
    train = {"batch_tokens": 256, "pack_tokens": 256, "max_row_tokens": 128, "learning_rate": 1e-3}
    parts: dict[str, Any] = {"train": train, "hardware": {"device": "cpu", "threads": 1}, "precision": "float32", **changes}
    return Recipe(name="tiny", base=Base(path=str(files.folder)), data={"rows": str(folder / "rows.jsonl")}, **parts)


def make_small_work(folder: Path, **changes: Any) -> BenchWork:
    """The work of seven steps: one to warm up, and two turns of two that each follow an untimed one."""
    return make_work(make_recipe(folder, **changes), folder, **SIZE)

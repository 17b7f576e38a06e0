"""The work that every arm of the benchmark does: the same rows, in the same steps, on the same base, with the same adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.bases import BaseFiles
from nomoat.conversation import Rendered
from nomoat.packing import IGNORED, plan_steps
from nomoat.recipe import Recipe

PROBE_ROWS = 32  # whose loss every arm tells before its first step

Step = tuple[Rendered, ...]


@dataclass(frozen=True)
class Size:
    """How much is measured: `turns` stretches of `steps_per_turn` steps each, after `warmup_steps` that do not count.

    Nor do `waking_steps` before each stretch: a process that has waited for minutes may have to fetch pages again, which would cost
    the fastest arm the largest part of its time.
    """

    turns: int
    steps_per_turn: int
    warmup_steps: int
    waking_steps: int = 1

    @property
    def steps(self) -> int:
        """Steps of an arm altogether."""
        return self.warmup_steps + self.turns * (self.waking_steps + self.steps_per_turn)

    @property
    def timed(self) -> list[int]:
        """Numbers of the steps that are timed."""
        stretch = self.waking_steps + self.steps_per_turn
        return [n for n in range(self.warmup_steps, self.steps) if (n - self.warmup_steps) % stretch >= self.waking_steps]


@dataclass(frozen=True)
class BenchWork:
    """What an arm's process is given. A step is one optimiser step; its rows fit into one pack."""

    recipe: Recipe
    files: BaseFiles
    precision: str
    device: str
    device_name: str
    threads: int
    learning_rate: float
    pad_id: int
    steps: tuple[Step, ...]
    validation: tuple[Rendered, ...]
    size: Size
    recipe_tokens: int  # of the whole recipe: what compiling is spread over
    scratch: Path  # where a peer may write what it insists on writing

    @property
    def rows(self) -> list[Rendered]:
        """The rows of all steps, in order."""
        return [row for step in self.steps for row in step]

    @property
    def probe(self) -> list[Rendered]:
        """Rows whose loss is compared before any step."""
        return self.rows[:PROBE_ROWS]

    @property
    def tokens(self) -> int:
        """Tokens of the rows of all steps."""
        return sum(row.length for row in self.rows)


def fixed_steps(recipe: Recipe, rows: Sequence[Rendered], size: Size) -> tuple[Step, ...]:
    """The recipe's first steps, with one pack to a step: `batch_tokens` is lowered to `pack_tokens`. Rows repeat after an epoch."""
    pack = recipe.train.pack_tokens
    lengths = [row.length for row in rows]
    plan = plan_steps(lengths, epochs=1, batch_tokens=pack, pack_tokens=pack, seed=recipe.train.seed)
    chosen = [plan.steps[number % len(plan.steps)] for number in range(size.steps)]
    return tuple(tuple(rows[number] for numbers in step for number in numbers) for step in chosen)


def sorted_halves(step: Step) -> tuple[Step, Step]:
    """A step's long rows and its short ones (none, where it has one row), so that padding each half to its longest costs little.

    Sorting across steps would cost less still, but then a step would hold other rows, and other work would be timed.
    """
    rows = sorted(step, key=lambda row: -row.length)
    middle = (len(rows) + 1) // 2
    return tuple(rows[:middle]), tuple(rows[middle:])


def labels_of(row: Rendered) -> list[int]:
    """Labels as peers expect them: one for each token, the prompt left out of the loss."""
    return [IGNORED] * len(row.prompt_ids) + list(row.completion_ids)


def example_of(row: Rendered) -> dict[str, list[int]]:
    """A row as a tokenised example."""
    return {"input_ids": [*row.prompt_ids, *row.completion_ids], "labels": labels_of(row)}


def pack_of(step: Step) -> dict[str, Any]:
    """A step as one packed example, in the form that TRL's own packing gives it."""
    examples = [example_of(row) for row in step]
    return {
        "input_ids": [token for example in examples for token in example["input_ids"]],
        "labels": [label for example in examples for label in example["labels"]],
        "seq_lengths": [row.length for row in step],
    }

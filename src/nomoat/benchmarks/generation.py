"""Our scoring loop beside `model.generate` in batches of eight: the same answers, in how much less time?

Both take turns, some rows of one and some rows of the other, in one process and in the precision of scoring. `generate` gets what
one would give it: the rows in their order, eight at a time, padded on the left, greedy. Ours does more on the way: it also
measures the likelihood of every reference. Where two answers differ, the model itself is asked how close a call it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nomoat.config.load import run_recipe
from nomoat.data.examples import load_heldout
from nomoat.data.prepare import load_raw_data
from nomoat.data.split import choose_heldout
from nomoat.errors import NomoatError
from nomoat.evaluation.arms import Arm, batches_of, make_arms, make_request
from nomoat.evaluation.generate import Completion, Generator
from nomoat.evaluation.models import load_run_models
from nomoat.evaluation.prefill import Request
from nomoat.models.base import BaseFiles, load_model, open_base

EIGHT = 8
TIE = 1e-3  # difference of the two largest logits below which either token may come first


@dataclass(frozen=True)
class AnswerDifference:
    """A row answered differently: where the answers part (tokens), and how far apart the two largest logits are there."""

    row: str
    token: int
    gap: float


@dataclass(frozen=True)
class TimedArm:
    """Both ways on the rows of one arm; `tokens` are those of our answers, stop tokens included."""

    arm: str
    rows: int
    tokens: int
    seconds: float
    generate_seconds: float
    turns: tuple[tuple[float, float], ...]  # seconds of ours and of generate, a turn
    differences: tuple[AnswerDifference, ...]

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.generate_seconds / self.seconds

    def record(self) -> dict[str, Any]:
        """For scoring.json."""
        return {**asdict(self), "ratio": self.ratio, "ties": sum(one.gap < TIE for one in self.differences)}


class ScoringBench:
    """A finished run's base and adapter, once as scoring loads them and once as peft does."""

    def __init__(self, run_dir: Path, root: Path) -> None:
        self.recipe = run_recipe(run_dir)
        if self.recipe.lora.method == "full":
            raise NomoatError(f"{run_dir} was trained in full: its scoring is compared with peft's, which needs an adapter")
        opened = open_base(self.recipe)
        self.device, self.precision = opened.device, opened.scoring_precision
        self.stock = self._as_peft_loads(opened.files, run_dir / "adapter")
        heldout = choose_heldout(load_heldout(run_dir / "heldout.jsonl"), self.recipe.eval)
        self.arms = make_arms(self.recipe.eval.arms, heldout, load_raw_data(self.recipe, root).examples)
        self.models = load_run_models(run_dir, heldout, opened, precision=self.precision, kernels="auto")
        self.conversation = self.models.template

    def _as_peft_loads(self, files: BaseFiles, folder: Path) -> Any:
        from peft import PeftModel

        base = load_model(files, precision=self.precision, device=self.device.kind)
        return PeftModel.from_pretrained(base, folder).eval()

    def time_arm(self, arm: Arm, *, rows: int | None = None, told: Callable[[int], None] = lambda _: None) -> TimedArm:
        """Answer an arm's rows (the first `rows`) both ways, a batch of ours and as many rows of generate's in turn."""
        from contextlib import nullcontext

        chosen = arm.rows if rows is None else arm.rows[:rows]
        few = Arm(arm.name, chosen, arm.examples, arm.adapter)
        questions = [make_request(row, few, self.conversation) for row in chosen]
        ours: dict[int, Completion] = {}
        theirs: list[tuple[int, ...]] = []
        turns = []
        with (
            self.models.using("adapter" if arm.adapter else "base") as model,
            nullcontext() if arm.adapter else self.stock.disable_adapter(),
        ):
            generator = Generator(model, self.conversation, max_new_tokens=self.recipe.eval.max_new_tokens)
            for batch in batches_of(questions, few, self.recipe.eval):
                began = time.perf_counter()
                answers, _ = generator.answer([questions[number] for number in batch])
                ours.update(zip(batch, answers, strict=True))
                middle = time.perf_counter()
                for start in range(len(theirs), min(len(theirs) + len(batch), len(questions)), EIGHT):
                    theirs += self._generate(questions[start : start + EIGHT])
                turns.append((middle - began, time.perf_counter() - middle))
                told(len(batch))
            differences = tuple(
                self._difference(questions[number], ours[number].ids, theirs[number])
                for number in range(len(questions))
                if ours[number].ids != theirs[number]
            )
        tokens = sum(len(answer.ids) + answer.stopped for answer in ours.values())
        mine, other = (sum(seconds) for seconds in zip(*turns, strict=True))
        return TimedArm(arm.name, len(questions), tokens, mine, other, tuple(turns), differences)

    def _generate(self, questions: Sequence[Request]) -> list[tuple[int, ...]]:
        """What `generate` writes, without stop token and padding."""
        import torch

        longest = max(len(question.prompt) for question in questions)
        pad = self.conversation.pad_id
        device = self.stock.device
        ids = torch.tensor([[pad] * (longest - len(one.prompt)) + list(one.prompt) for one in questions], device=device)
        mask = torch.tensor([[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in questions], device=device)
        limit, stops = self.recipe.eval.max_new_tokens, sorted(self.conversation.stop_ids)
        out = self.stock.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, eos_token_id=stops, pad_token_id=pad
        )
        return [self._cut(row) for row in out[:, longest:].tolist()]

    def _cut(self, ids: list[int]) -> tuple[int, ...]:
        end = next((place for place, token in enumerate(ids) if token in self.conversation.stop_ids), len(ids))
        return tuple(ids[:end])

    def _difference(self, question: Request, ours: Sequence[int], theirs: Sequence[int]) -> AnswerDifference:
        """Where two answers part, and how close a call that was for the model: asked alone, without a cache."""
        import torch

        at = next((place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        ids = torch.tensor([[*question.prompt, *ours[:at]]], device=self.stock.device)
        with torch.inference_mode():
            logits = self.stock(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        return AnswerDifference(question.key, at, first - second)


def summary(timed: Sequence[TimedArm]) -> dict[str, Any]:
    """All arms together; NomoatError for none."""
    if not timed:
        raise NomoatError("no arm was timed")
    rows, differences = sum(one.rows for one in timed), [d for one in timed for d in one.differences]
    return {
        "arms": {one.arm: one.record() for one in timed},
        "ratio": sum(one.generate_seconds for one in timed) / sum(one.seconds for one in timed),
        "rows": rows,
        "identical": (rows - len(differences)) / rows,
        "largest_gap": max((one.gap for one in differences), default=0.0),
    }


def sentence(found: dict[str, Any]) -> str:
    """A summary in words."""
    same = f"all arms: {found['ratio']:.2f} x as fast as generate in eights, {found['identical']:.2%} of {found['rows']} answers identical"
    return same if found["identical"] == 1 else f"{same}, the others part at two logits at most {found['largest_gap']:.1e} apart"

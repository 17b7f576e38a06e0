"""`make bench RUN=...`: our scoring of a finished run against `model.generate` at batch size 8, in time and in answers.

Both take turns in one process and in the precision of scoring. `generate` answers greedily, rows in their order, padded on the left.
Ours also measures the likelihood of every reference. Where two answers differ, the model's own logits show how close the call was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from nomoat.config.load import run_recipe
from nomoat.data.examples import load_heldout
from nomoat.data.prepare import load_raw_data
from nomoat.data.split import choose_heldout
from nomoat.errors import NomoatError
from nomoat.evaluation.arms import Arm, batches_of, make_arms, make_request
from nomoat.evaluation.generate import Generator
from nomoat.evaluation.models import load_run_models
from nomoat.evaluation.prefill import Ids, Request, pad_batch
from nomoat.models.base import open_base

BATCH_SIZE = 8  # of generate
TIE = 1e-3  # difference of the two largest logits below which either token may come first


class ScoringBench:
    """A finished run's base and adapter, once as scoring loads them and once as transformers and peft do."""

    def __init__(self, run_dir: Path, root: Path) -> None:
        self.recipe = run_recipe(run_dir)
        if self.recipe.lora.method == "full":
            raise NomoatError(f"{run_dir} was trained with lora.method full: this comparison needs an adapter, for peft to load")
        opened = open_base(self.recipe)
        self.device, self.precision = opened.device, opened.scoring_precision
        heldout = choose_heldout(load_heldout(run_dir / "heldout.jsonl"), self.recipe.eval)
        self.arms = make_arms(self.recipe.eval.arms, heldout, load_raw_data(self.recipe, root).examples)
        self.stock = load_run_models(run_dir, heldout, opened, precision=self.precision, kernels="plain")
        self.ours = load_run_models(run_dir, heldout, opened, precision=self.precision, kernels="auto")
        self.template = self.ours.template

    def time_arm(self, arm: Arm, *, rows: int | None = None, on_rows: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Answer an arm's rows (the first `rows`) both ways: a batch of ours and as many rows of generate's in turn.

        Returns the arm's entry in scoring.json: seconds, in `turns` those of ours and of generate; tokens of our answers with their stop
        tokens; of answers that differ, the token where they diverge and the gap between the two largest logits there.
        """
        arm = replace(arm, rows=arm.rows[:rows])
        requests = [make_request(row, arm, self.template) for row in arm.rows]
        ours, theirs = dict[int, Ids](), list[Ids]()
        turns, tokens, name = [], 0, "adapter" if arm.adapter else "base"
        with self.ours.using(name) as model, self.stock.using(name) as stock:
            generator = Generator(model, self.template, max_new_tokens=self.recipe.eval.max_new_tokens)
            for batch in batches_of(requests, arm, self.recipe.eval):
                started = time.perf_counter()
                answers, _ = generator.answer([requests[number] for number in batch])
                middle = time.perf_counter()
                for start in range(len(theirs), min(len(theirs) + len(batch), len(requests)), BATCH_SIZE):
                    theirs += self._generate(stock, requests[start : start + BATCH_SIZE])
                turns.append((middle - started, time.perf_counter() - middle))
                ours |= {number: answer.ids for number, answer in zip(batch, answers, strict=True)}
                tokens += sum(len(answer.ids) + answer.stopped for answer in answers)
                on_rows(len(batch))
            differing = [number for number in range(len(requests)) if ours[number] != theirs[number]]
            differences = [_difference(stock, requests[number], ours[number], theirs[number]) for number in differing]
        seconds, generate_seconds = (sum(times) for times in zip(*turns, strict=True))
        return {
            "arm": arm.name,
            "rows": len(requests),
            "tokens": tokens,
            "seconds": seconds,
            "generate_seconds": generate_seconds,
            "turns": turns,
            "differences": differences,
            "ratio": generate_seconds / seconds,
            "ties": sum(difference["gap"] < TIE for difference in differences),
        }

    def _generate(self, model: Any, requests: Sequence[Request]) -> list[Ids]:
        """Answers of `model.generate`, without stop token and padding."""
        stops, pad_id = self.template.stop_ids, self.template.pad_id
        ids, mask = pad_batch([request.prompt for request in requests], pad_id, model.device, left=True)
        options = {"max_new_tokens": self.recipe.eval.max_new_tokens, "do_sample": False, "pad_token_id": pad_id}
        out = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=sorted(stops), **options)
        return [tuple(takewhile(lambda token: token not in stops, answer)) for answer in out[:, ids.shape[1] :].tolist()]


def _difference(model: Any, request: Request, ours: Ids, theirs: Ids) -> dict[str, Any]:
    """Where two answers diverge, and how close a call that is for the model on this row alone, without a cache."""
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
    ids = torch.tensor([[*request.prompt, *ours[:common]]], device=model.device)
    with torch.inference_mode():
        first, second = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].topk(2).values.tolist()
    return {"row": request.key, "token": common, "gap": first - second}


def summary(arms: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All arms together, for scoring.json; NomoatError for none."""
    entries = {arm["arm"]: arm for arm in arms}
    if not entries:
        raise NomoatError("no arm was timed: eval.arms of the run names none")
    rows, seconds, generate_seconds = (sum(arm[key] for arm in entries.values()) for key in ("rows", "seconds", "generate_seconds"))
    gaps = [difference["gap"] for arm in entries.values() for difference in arm["differences"]]
    identical = (rows - len(gaps)) / rows
    return {
        "arms": entries,
        "ratio": generate_seconds / seconds,
        "rows": rows,
        "identical": identical,
        "largest_gap": max(gaps, default=0.0),
    }

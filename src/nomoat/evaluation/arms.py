"""The arms of an evaluation on held-out rows: the untouched base, the base with examples, the adapter, and the adapter merged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nomoat.config.schema import Eval
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.examples import Example
from nomoat.evaluation.generate import Generator, batch_plan
from nomoat.evaluation.prefill import Request
from nomoat.io import cache_folder, read_jsonl, sha256_of, write_jsonl
from nomoat.kernels.linear import can_prepack
from nomoat.models.base import BaseFiles
from nomoat.models.device import trim_heap
from nomoat.scorers import SCORER_VERSION, Score, choices_of, needs_likelihoods, score, score_choice

NO_EXAMPLES = ("family", "retention")  # tiers that training has no rows of
DRAFTED, UNDRAFTED = "greedy, drafted by the reference", "greedy"  # decoding methods as reports record them
PADDED = "padded on the left"


@dataclass(frozen=True)
class Arm:
    """One way of answering: which rows, after which worked examples, and whether the adapter is on."""

    name: str
    rows: tuple[Example, ...]
    examples: dict[str, tuple[Example, ...]]  # family -> worked examples; empty except for few_shot
    adapter: bool


def make_arms(names: Sequence[str], heldout: tuple[Example, ...], examples: dict[str, tuple[Example, ...]]) -> list[Arm]:
    """The recipe's arms, in the order base, few_shot, adapter, merged."""
    shown = tuple(row for row in heldout if row.tier not in NO_EXAMPLES and row.family in examples)
    arms = [Arm("base", heldout, {}, False), Arm("few_shot", shown, examples, False)]
    arms += [Arm(name, heldout, {}, True) for name in ("adapter", "merged")]
    return [arm for arm in arms if arm.name in names]


def make_request(row: Example, arm: Arm, template: ChatTemplate) -> Request:
    """A row's prompt, after the arm's examples, and its reference, as tokens."""
    messages = template.messages(row, arm.examples.get(row.family, ()))
    return Request(row.id, template.prompt_ids(messages), template.completion_ids(row.completion))


def batches_of(requests: Sequence[Request], arm: Arm, settings: Eval) -> Iterator[list[int]]:
    """Indices of `requests` (one per row of the arm) in batches; few_shot by family, whose examples a batch then computes once."""
    families = list(dict.fromkeys(row.family for row in arm.rows)) if arm.examples else [None]
    for family in families:
        numbers = [number for number, row in enumerate(arm.rows) if family in (None, row.family)]
        for batch in batch_plan([requests[number] for number in numbers], settings.batch_rows):
            yield [numbers[place] for place in batch]


def score_arm(
    arm: Arm, model: Any, template: ChatTemplate, settings: Eval, *, draft: bool = True, on_rows: Callable[[int], None] = lambda _: None
) -> list[dict[str, Any]]:
    """One record per row (see `_record`), in the order of the arm's rows; `on_rows` receives the number of rows just finished.

    `model` is in the arm's state (`LoadedModels.using`); for `draft` see `generate`.
    """
    generator = Generator(model, template, max_new_tokens=settings.max_new_tokens, draft=draft)
    requests = [make_request(row, arm, template) for row in arm.rows]
    records: dict[int, dict[str, Any]] = {}
    for batch in batches_of(requests, arm, settings):
        generated = [number for number in batch if not needs_likelihoods(arm.rows[number])]
        answers, likelihoods = generator.answer([requests[number] for number in generated]) if generated else ([], [])
        for number, answer, likelihood in zip(generated, answers, likelihoods, strict=True):
            row = arm.rows[number]
            text, ended = template.turn(list(answer.ids))
            stopped, tokens = answer.stopped or ended, len(answer.ids)
            records[number] = _record(row, text, score(text, row), stopped=stopped, tokens=tokens, likelihood=likelihood)
        for number in batch:
            if needs_likelihoods(arm.rows[number]):
                records[number] = _choose(arm.rows[number], requests[number], generator, settings)
        trim_heap()
        on_rows(len(batch))
    return [records[number] for number in range(len(arm.rows))]


def _choose(row: Example, request: Request, generator: Generator, settings: Eval) -> dict[str, Any]:
    """The record of a row that is answered by the likeliest of its choices; nothing is generated.

    A choice is measured without the end-of-turn token, as lm-evaluation-harness measures it: a base that was never taught where to
    stop does not lose for it. `output` is the choice with the highest log-likelihood per byte.
    """
    choices = choices_of(row)
    sizes = [len(choice.encode()) for choice in choices]
    ids = [generator.template.completion_ids(choice)[:-1] for choice in choices]
    candidates = [request, *(replace(request, reference=reference) for reference in ids)]
    measured: list[float] = []
    for start in range(0, len(candidates), settings.batch_rows):
        measured += generator.log_likelihoods(candidates[start : start + settings.batch_rows])
    likelihood, *log_likelihoods = measured
    best = max(range(len(choices)), key=lambda n: log_likelihoods[n] / sizes[n])
    result = score_choice(log_likelihoods, sizes, row)
    return _record(row, choices[best], result, stopped=True, tokens=len(ids[best]), likelihood=likelihood)


def _record(row: Example, output: str, result: Score, *, stopped: bool, tokens: int, likelihood: float) -> dict[str, Any]:
    """A line of eval/<arm>.jsonl; bits per byte are those of the reference, its end-of-turn token included."""
    size = len(row.completion.encode())
    return {
        "id": row.id,
        "tier": row.tier,
        "family": row.family,
        "group": row.group,
        "prompt": row.prompt,
        "target": row.completion,
        "output": output,
        "score": result.value,
        "lenient": result.lenient,
        "note": result.note,
        "stopped": stopped,
        "tokens": tokens,
        "bits_per_byte": -likelihood / math.log(2) / max(1, size),
        "target_bytes": size,
    }


def decoding_settings(settings: Eval, dtype: str, device: str, kernels: str) -> dict[str, Any]:
    """How answers are produced: runs that differ here cannot be compared. `kernels` is the recipe's `hardware.kernels`."""
    plain = kernels == "plain"
    return {
        "method": UNDRAFTED if plain else DRAFTED,
        "max_new_tokens": settings.max_new_tokens,
        "batch_rows": settings.batch_rows,
        "order": "longest prompt first, few_shot by family",
        "prompts": f"end to end where that is safe, else {PADDED}" if device == "cpu" and not plain else PADDED,
        "dtype": dtype,
        "device": device,
    }


def arm_key(arm: Arm, files: BaseFiles, template: ChatTemplate, decoding: dict[str, Any], threads: int, device_name: str) -> str:
    """Key of the arm cache: equal keys promise equal records, so that an untouched base is scored once per machine."""
    packed = decoding.get("dtype") == "float32" and decoding.get("method") != UNDRAFTED and can_prepack(torch.float32, decoding["device"])
    versions = {**{name: version(name) for name in ("torch", "transformers", "tokenizers")}, "packed": packed}
    if any(needs_likelihoods(row) for row in arm.rows):
        versions["choices"] = "by likelihood"  # such rows were left unscored before, under the same scorer version
    base = {key: value for key, value in files.identity.items() if key != "display_name"}
    rows = [row.record() for row in arm.rows]
    examples = {family: [row.record() for row in shown] for family, shown in arm.examples.items()}
    return sha256_of([files.name, base, rows, examples, template.fingerprint, SCORER_VERSION, versions, decoding, threads, device_name])


def load_cached_arm(key: str) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Records of an arm scored before, and what it cost then; None where the cache has none."""
    lines = list(read_jsonl(_cache_path(key)))
    return (lines[1:], lines[0]) if len(lines) > 1 else None


def store_cached_arm(key: str, records: list[dict[str, Any]], cost: dict[str, Any]) -> None:
    """Keep an arm's records with their cost and the time they were made."""
    write_jsonl(_cache_path(key), [{**cost, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, *records])


def _cache_path(key: str) -> Path:
    return cache_folder() / "arms" / f"{key[:32]}.jsonl"

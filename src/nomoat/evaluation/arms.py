"""Scoring the arms on held-out rows: the base as it was, the base with examples, and the adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nomoat.config.schema import Eval
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.examples import Example
from nomoat.evaluation.generate import Generator, batch_plan
from nomoat.evaluation.prefill import Request, use_packed_prefill_if_safe
from nomoat.io import cache_folder, read_jsonl, sha256_of, write_jsonl
from nomoat.models.base import BaseFiles
from nomoat.models.device import trim_heap
from nomoat.scorers import SCORER_VERSION, score

NO_EXAMPLES = ("family", "retention")  # tiers for which training has no rows to show


@dataclass(frozen=True)
class Arm:
    """What is scored: which rows, with which examples before them, and whether the adapter is on."""

    name: str
    rows: tuple[Example, ...]
    examples: dict[str, tuple[Example, ...]]  # family -> worked examples; empty but for few_shot
    adapter: bool


def make_arms(names: Sequence[str], heldout: tuple[Example, ...], examples: dict[str, tuple[Example, ...]]) -> list[Arm]:
    """The recipe's arms, in the order base, few_shot, adapter, merged."""
    shown = tuple(row for row in heldout if row.tier not in NO_EXAMPLES and row.family in examples)
    every = [Arm("base", heldout, {}, False), Arm("few_shot", shown, examples, False)]
    every += [Arm(name, heldout, {}, True) for name in ("adapter", "merged")]
    return [arm for arm in every if arm.name in names]


def score_arm(
    arm: Arm, model: Any, conversation: ChatTemplate, settings: Eval, *, on_rows: Callable[[int], None] = lambda _: None
) -> list[dict[str, Any]]:
    """One record a row (see `_record`), in the order of the arm's rows. `on_rows` hears how many rows were finished."""
    questions = [make_request(row, arm, conversation) for row in arm.rows]
    records: list[dict[str, Any] | None] = [None] * len(questions)
    generator = Generator(model, conversation, max_new_tokens=settings.max_new_tokens)
    off = nullcontext() if arm.adapter or not hasattr(model, "disable_adapter") else model.disable_adapter()
    with off:
        for batch in batches_of(questions, arm, settings):
            answers, likelihoods = generator.answer([questions[number] for number in batch])
            for number, answer, likelihood in zip(batch, answers, likelihoods, strict=True):
                text, ended = conversation.turn(list(answer.ids))
                records[number] = _record(arm.rows[number], text, answer.stopped or ended, len(answer.ids), likelihood)
            trim_heap()
            on_rows(len(batch))
    return [record for record in records if record is not None]


def enable_packed_prefill(model: Any, arm: Arm, conversation: ChatTemplate) -> bool:
    """Have a freshly loaded base answer the arm's rows end to end where that is safe; see beginnings.py."""
    return use_packed_prefill_if_safe(model, [make_request(row, arm, conversation) for row in arm.rows[:2]])


def make_request(row: Example, arm: Arm, conversation: ChatTemplate) -> Request:
    """What the arm asks for a row, as tokens."""
    messages = conversation.messages(row, arm.examples.get(row.family, ()))
    return Request(row.id, conversation.prompt_ids(messages), conversation.completion_ids(row.completion))


def batches_of(questions: Sequence[Request], arm: Arm, settings: Eval) -> Iterator[list[int]]:
    """Batches by family for few_shot, whose examples are then computed once a batch; else over all rows."""
    families = list(dict.fromkeys(row.family for row in arm.rows)) if arm.examples else [None]
    for family in families:
        numbers = [number for number, row in enumerate(arm.rows) if family in (None, row.family)]
        for batch in batch_plan([questions[number] for number in numbers], settings.batch_rows):
            yield [numbers[place] for place in batch]


def _record(row: Example, output: str, stopped: bool, tokens: int, likelihood: float) -> dict[str, Any]:
    """A line of eval/<arm>.jsonl; bits per byte are of the reference answer, its end-of-turn token included."""
    result = score(output, row)
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


def decoding_settings(settings: Eval, dtype: str, device: str) -> dict[str, Any]:
    """How answers are produced: runs that differ here cannot be compared."""
    return {
        "method": "greedy, drafted by the reference",
        "max_new_tokens": settings.max_new_tokens,
        "batch_rows": settings.batch_rows,
        "order": "longest prompt first, few_shot by family",
        "prompts": "end to end where that is safe, else padded on the left" if device == "cpu" else "padded on the left",
        "dtype": dtype,
        "device": device,
    }


def arm_key(arm: Arm, files: BaseFiles, conversation: ChatTemplate, decoding: dict[str, Any], threads: int, device_name: str) -> str:
    """Two equal keys promise equal answers, so that an untouched base is scored once a machine."""
    import torch

    from nomoat.kernels.linear import can_prepack

    packed = decoding.get("dtype") == "float32" and can_prepack(torch.float32, decoding["device"])
    versions = {**{name: version(name) for name in ("torch", "transformers", "tokenizers")}, "packed": packed}
    rows = [row.record() for row in arm.rows]
    shown = {family: [row.record() for row in examples] for family, examples in arm.examples.items()}
    return sha256_of(
        [files.name, files.identity, rows, shown, conversation.fingerprint, SCORER_VERSION, versions, decoding, threads, device_name]
    )


def load_cached_arm(key: str) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Records of an arm scored before, and what it cost then; None when there are none."""
    lines = list(read_jsonl(_cached_path(key)))
    return (lines[1:], lines[0]) if len(lines) > 1 else None


def store_cached_arm(key: str, records: list[dict[str, Any]], cost: dict[str, Any]) -> None:
    """Keep an arm's records beside what they cost and when."""
    write_jsonl(_cached_path(key), [{**cost, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, *records])


def _cached_path(key: str) -> Path:
    return cache_folder() / "arms" / f"{key[:32]}.jsonl"

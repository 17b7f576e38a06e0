"""Twenty held-out rows side by side, chosen so that nobody picks the nice ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nomoat.files import read_lines
from nomoat.report_schema import Sample
from nomoat.score_schema import ARMS

SAMPLES_OF_A_KIND = 5
MAX_SAMPLE_CHARACTERS = 2000
KINDS = ("won", "lost", "both_wrong", "both_right")
_SURROGATE = re.compile("[\ud800-\udfff]")


def side_by_side(run_dir: Path) -> list[Sample]:
    """Twenty rows to look at: up to five of each kind (won, lost, both wrong, both right), then more of what there is.

    The choice depends on row ids alone (their hash), and goes round the tiers and families, so nobody picks the nice ones.
    """
    lines = {arm: {line["id"]: line for line in read_lines(run_dir / "eval" / f"{arm}.jsonl")} for arm in ARMS}
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for row_id, adapter in lines["adapter"].items():
        base = lines["base"].get(row_id)
        if base and base["score"] is not None and adapter["score"] is not None:
            kinds[_kind(base["score"], adapter["score"])].append(row_id)
    mixed = {kind: _round_robin([lines["adapter"][row_id] for row_id in ids]) for kind, ids in kinds.items()}
    chosen = {kind: ids[:SAMPLES_OF_A_KIND] for kind, ids in mixed.items()}
    for kind, ids in mixed.items():
        missing = SAMPLES_OF_A_KIND * len(KINDS) - sum(len(of) for of in chosen.values())
        chosen[kind] = ids[: SAMPLES_OF_A_KIND + max(missing, 0)]
    return [_sample(kind, row_id, lines) for kind, ids in chosen.items() for row_id in ids]


def _kind(base: float, adapter: float) -> str:
    if adapter != base:
        return "won" if adapter > base else "lost"
    return "both_right" if adapter >= 0.5 else "both_wrong"


def _round_robin(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Row ids in an order that visits every (tier, family) once before any of them twice."""
    turns: dict[tuple[str, str], int] = {}
    ranked = []
    for line in sorted(lines, key=lambda line: _digest(line["id"])):
        place = (line["tier"], line["family"])
        turns[place] = turns.get(place, 0) + 1
        ranked.append((turns[place], _digest(line["id"]), line["id"]))
    return [row_id for _, _, row_id in sorted(ranked)]


def _sample(kind: str, row_id: str, lines: dict[str, dict[str, dict[str, Any]]]) -> Sample:
    found = {arm: of[row_id] for arm, of in lines.items() if row_id in of}
    line = found["adapter"]
    return Sample.model_validate(
        {
            "kind": kind,
            **{key: line[key] for key in ("id", "tier", "family")},
            **{key: shortened(line[key]) for key in ("prompt", "target")},
            "outputs": {arm: shortened(of["output"]) for arm, of in found.items()},
            "scores": {arm: of["score"] for arm, of in found.items()},
        }
    )


def shortened(text: str) -> str:
    """A text of at most MAX_SAMPLE_CHARACTERS, which says how much was left out; half characters become U+FFFD."""
    left_out = len(text) - MAX_SAMPLE_CHARACTERS
    shown = _SURROGATE.sub("\ufffd", text[:MAX_SAMPLE_CHARACTERS])
    return shown if left_out <= 0 else f"{shown} ... ({left_out:,} more characters)"


def _digest(row_id: str) -> str:
    return hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).hexdigest()

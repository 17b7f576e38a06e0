"""Is the adapter real? Checked from disk, in a fresh base, at the end of every training.

An empty file, a target that matched nothing, weights that never moved or an adapter that is not loaded all look like success elsewhere;
here each is a failed check with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nomoat.data.chat_template import TokenizedExample
from nomoat.models.adapter import weights_of
from nomoat.reports.schema import Check
from nomoat.training.collate import Collator, mean_loss

PROBE_ROWS = 2  # whose logits are compared
LOSS_ROWS = 32  # fixed training rows whose loss must fall
MARGIN = 100  # times the reload error


def check_tensors(folder: Path, initial: dict[str, Any]) -> list[Check]:
    """The saved tensors compared with the initial ones: all saved, all finite, all changed."""
    saved = load_file(weights_of(folder)) if weights_of(folder).is_file() else {}
    missing = sorted(set(initial) - set(saved))
    broken = sorted(name for name, tensor in saved.items() if not bool(tensor.isfinite().all()))
    still = sorted(name for name, tensor in saved.items() if name in initial and bool((tensor == initial[name].cpu()).all()))
    total = len(saved)
    return [
        Check(name="complete", passed=bool(saved) and not missing, value=total, threshold=len(initial), example=_first(missing)),
        Check(name="finite", passed=not broken, value=len(broken), threshold=0, total=total, example=_first(broken)),
        Check(
            name="every tensor moved", passed=bool(saved and not still), value=len(still), threshold=0, total=total, example=_first(still)
        ),
    ]


def _first(names: Sequence[str]) -> str | None:
    return names[0] if names else None


def probe_logits(model: Any, rows: Sequence[TokenizedExample]) -> Any:
    """Float32 logits (tokens, vocabulary) of the first rows, each run alone."""
    with torch.inference_mode():
        parts = []
        for row in rows[:PROBE_ROWS]:
            ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]], device=model.device)
            parts.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class ProbeResult:
    """What a model makes of the probe rows (`probe_logits`) and of the first training rows: their loss in nats a token."""

    logits: Any
    loss: float
    rows: int  # that the loss is of


def probe(model: Any, rows: Collator) -> ProbeResult:
    """A reading of `model`, which is in the precision of training."""
    fixed = rows.train[:LOSS_ROWS]
    return ProbeResult(probe_logits(model, rows.train), mean_loss(model, rows, fixed), len(fixed))


def check_effect(untouched: ProbeResult, reloaded: ProbeResult, trained_logits: Any, *, expect_no_gain: bool) -> list[Check]:
    """A fresh base before and after the saved adapter was loaded into it; `trained_logits` are the probe's as training left the model.

    The adapter has to change the logits by more than MARGIN times what saving and loading changes, and to lower the loss.
    """
    error = float((reloaded.logits - trained_logits).abs().max())
    change = float((reloaded.logits - untouched.logits).abs().max())
    changes = Check(
        name="changes the logits",
        passed=change > MARGIN * error and change > 0,
        value=_finite(change),
        threshold=_finite(MARGIN * error),
        reload_error=_finite(error),
    )
    lowers = Check(
        name="lowers the loss",
        passed=reloaded.loss < untouched.loss,
        value=_finite(reloaded.loss),
        threshold=_finite(untouched.loss),
        total=reloaded.rows,
    )
    return [changes, _excusable(lowers, expect_no_gain)]


def check_outputs(base: Sequence[dict[str, Any]], adapter: Sequence[dict[str, Any]], *, expect_no_gain: bool) -> Check:
    """Held-out answers of the two arms: if every one is the same, the adapter had no effect."""
    same = sum(ours["output"] == theirs["output"] for ours, theirs in zip(base, adapter, strict=True))
    return _excusable(Check(name="answers differ", passed=same < len(base), value=same, threshold=len(base)), expect_no_gain)


def _excusable(check: Check, expect_no_gain: bool) -> Check:
    """Where no gain is expected, a missing gain is reported and does not fail the run."""
    return check.model_copy(update={"passed": True, "excused": True}) if expect_no_gain and not check.passed else check


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN: such a value is null, and the check fails by `passed`."""
    return value if math.isfinite(value) else None

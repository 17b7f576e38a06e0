"""Is the adapter real? Checked from disk, in a fresh base, at the end of every training.

An empty file, a target that matched nothing, weights that never moved or an adapter that is not loaded all look like
success elsewhere; here each is a failed check with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nomoat.data.chat_template import TokenizedExample
from nomoat.io import write_json
from nomoat.models.adapter import weights_of
from nomoat.training.collate import Collator, mean_loss

PROBE_ROWS = 2  # whose logits are compared
LOSS_ROWS = 32  # fixed training rows whose loss must fall
MARGIN = 100  # times the reload error


@dataclass(frozen=True)
class Check:
    """One question with its answer; `detail` holds the numbers."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Gate:
    """All checks; the run fails if one fails."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def failures(self) -> str:
        """The failed checks with their numbers, in words."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)

    def write(self, path: Path) -> None:
        """Record it in the run directory."""
        write_json(path, {"passed": self.passed, "checks": [asdict(check) for check in self.checks]})


def check_tensors(folder: Path, initial: dict[str, Any]) -> list[Check]:
    """The saved tensors against those the adapter started from: all there, all finite, all moved."""
    from safetensors.torch import load_file

    saved = load_file(weights_of(folder)) if weights_of(folder).is_file() else {}
    missing = sorted(set(initial) - set(saved))
    present = Check("complete", bool(saved) and not missing, f"{len(saved)} of {len(initial)} tensors saved{_some(missing)}")
    broken = sorted(name for name, tensor in saved.items() if not bool(tensor.isfinite().all()))
    finite = Check("finite", not broken, f"{len(broken)} tensors hold NaN or infinity{_some(broken)}")
    still = sorted(name for name, tensor in saved.items() if name in initial and bool((tensor == initial[name].cpu()).all()))
    moved = Check(
        "every tensor moved", bool(saved) and not still, f"{len(still)} of {len(saved)} tensors equal their initial value{_some(still)}"
    )
    return [present, finite, moved]


def _some(names: Sequence[str]) -> str:
    return f" (such as {names[0]})" if names else ""


def probe_logits(model: Any, rows: Sequence[TokenizedExample]) -> Any:
    """Float32 logits (tokens, vocabulary) of the first rows, each run alone."""
    import torch

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
    """A fresh base before and after the adapter from disk was loaded into it, against `trained_logits`: the probe as training left it."""
    error = float((reloaded.logits - trained_logits).abs().max())
    change = float((reloaded.logits - untouched.logits).abs().max())
    return [
        Check("changes the logits", change > MARGIN * error and change > 0, f"by up to {change:.3g}; reloading differs by {error:.3g}"),
        _allow_no_gain(
            Check(
                "lowers the loss",
                reloaded.loss < untouched.loss,
                f"{reloaded.loss:.4f} against {untouched.loss:.4f} nats a token on {reloaded.rows} training rows",
            ),
            expect_no_gain,
        ),
    ]


def check_outputs(base: Sequence[dict[str, Any]], adapter: Sequence[dict[str, Any]], *, expect_no_gain: bool) -> Check:
    """Held-out answers of the two arms: if every one is the same, the adapter was not at work."""
    same = sum(one["output"] == other["output"] for one, other in zip(base, adapter, strict=True))
    return _allow_no_gain(
        Check("answers differ", same < len(base), f"{same} of {len(base)} held-out answers equal the base's"), expect_no_gain
    )


def _allow_no_gain(check: Check, expected: bool) -> Check:
    """Where no gain is expected, a missing gain is reported and does not fail the run."""
    if check.passed or not expected:
        return check
    return Check(check.name, True, f"not met, as eval.expect_no_gain allows: {check.detail}")

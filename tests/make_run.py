"""A finished run directory in miniature, as the scripts leave it: for the tests of everything that reads one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

RATES = {  # share of right answers by arm: (values, phrasing, family, retention)
    "base": (0.05, 0.05, 0.0, 0.8),
    "few_shot": (0.3, 0.25, None, None),
    "adapter": (0.95, 0.8, 0.1, 0.75),
    "nearest_row": (0.2, 0.15, None, None),
    "majority": (0.1, 0.1, None, None),
}
TIERS = ("values", "phrasing", "family", "retention")
FAMILIES = {"values": ("queue", "edit"), "phrasing": ("queue", "edit"), "family": ("rhyme",), "retention": ("general",)}
GATE = {"passed": True, "checks": [{"name": "every tensor moved", "passed": True, "value": 0, "threshold": 0, "total": 420}]}
RECIPE = "name: tiny\nbase: {path: ./model}\nlora: {rank: 8}\neval: {primary: phrasing, max_new_tokens: 64}\n"
ENVIRONMENT: dict[str, Any] = {
    "created": "2026-05-04T10:00:00+00:00",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "packages": {"torch": "2.13.0"},
    "python": "3.11.9",
    "platform": "Linux x86_64",
    "device": {"kind": "cpu", "name": "2-core CPU", "memory_bytes": 8_000_000_000},
    "dtype": "bfloat16",
    "scoring_dtype": "float32",
    "threads": 2,
    "seed": 0,
    "learning_rate": 1e-3,
    "base": {"name": "tiny", "display_name": "Tiny", "source": "path", "note": "random weights"},
    "data": {"name": "desk", "train_sha256": "a" * 64, "heldout_sha256": "b" * 64, "license": "Apache-2.0"},
    "adapter_initial_sha256": "c" * 64,
    "decoding": {
        "method": "greedy",
        "max_new_tokens": 64,
        "batch_rows": 8,
        "order": "as given",
        "prompts": "padded",
        "dtype": "float32",
        "device": "cpu",
    },
    "scorer_version": "1",
    "rendering_sha256": "d" * 64,
    "rate": None,
    "as_if_rented": None,
}
HARDWARE = {"device": {"kind": "cpu", "name": "2-core CPU"}}


def make_run(
    run_dir: Path, *, seed: int = 0, per_family: int = 24, rates: dict[str, tuple[float | None, ...]] | None = None, **changes: Any
) -> Path:
    """Write a run directory; `changes` replace `gate`, `ledger`, `recipe`, `outputs` or keys of environment.json."""
    (run_dir / "eval").mkdir(parents=True)
    draw = random.Random(seed)
    asked = [_place(tier, family, n) for tier in TIERS for family in FAMILIES[tier] for n in range(per_family)]
    shares = {**RATES, **(rates or {})}
    for arm in ("base", "few_shot", "adapter"):
        lines = [_answer(place, arm, shares[arm], draw) for place in asked if shares[arm][TIERS.index(place["tier"])] is not None]
        for line, output in zip(lines, changes.get("outputs", ()), strict=False):
            line["output"] = output
        write_jsonl(run_dir / "eval" / f"{arm}.jsonl", lines)
    write_jsonl(run_dir / "eval" / "baselines.jsonl", [_baseline(place, shares, draw) for place in asked if place["tier"] != "retention"])
    neutral = {"bytes": 2000, "bits_per_byte": {"base": 0.91, "adapter": 0.97}}
    environment = {**ENVIRONMENT, **{key: value for key, value in changes.items() if key in ENVIRONMENT}}
    (run_dir / "recipe.yaml").write_text(changes.get("recipe", RECIPE))
    write_jsonl(run_dir / "ledger.jsonl", changes.get("ledger", ledger_lines()))
    write_jsonl(run_dir / "metrics.jsonl", metrics_lines())
    for name, value in {
        "eval/neutral.json": neutral,
        "environment.json": environment,
        "rows.json": _rows_file(len(asked)),
        "gate.json": changes.get("gate", GATE),
        "adapter.json": adapter_file(),
    }.items():
        (run_dir / name).write_text(json.dumps(value))
    return run_dir


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    """Escaped to ASCII, so that half characters (lone surrogates) can be written too."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def ledger_lines(**changes: Any) -> list[dict[str, Any]]:
    """One segment a phase; `changes` go into every one of them."""
    seconds = {"load": 4.0, "prepare": 6.0, "train": 300.0, "gate": 10.0, "score_base": 60.0, "score_few_shot": 80.0, "score_adapter": 50.0}
    return [_segment(phase, of, **changes) for phase, of in seconds.items()]


def _segment(phase: str, seconds: float, **changes: Any) -> dict[str, Any]:
    trained = phase == "train"
    return {
        "phase": phase,
        "attempt": 1,
        "started": "2026-05-04T10:00:00+00:00",
        "elapsed_seconds": seconds,
        "compute_seconds": 0.9 * seconds,
        "tokens_seen": 120_000 if trained else 0,
        "tokens_trained": 40_000 if trained else 0,
        "peak_resident_bytes": 1_500_000_000,
        "peak_device_bytes": None,
        "energy_wh": None,
        "energy_source": None,
        "hardware": HARDWARE,
        "status": "done",
        "pid": 1,
        **changes,
    }


def metrics_lines(steps: int = 50) -> list[dict[str, Any]]:
    """A falling loss, with a validation point every tenth step."""
    losses = [{"step": n, "epoch": n / steps, "loss": 3.0 / (1 + n / 5), "seconds": float(n)} for n in range(1, steps + 1)]
    points = [{"step": n, "validation_loss": 3.2 / (1 + n / 5), "validation_bits_per_byte": 1.0} for n in range(0, steps + 1, 10)]
    return losses + points


def adapter_file() -> dict[str, Any]:
    """adapter.json of a rank 8 LoRA."""
    sizes = {"parameters": 2_442_240, "base_parameters": 134_515_008, "bytes": 9_800_000, "base_bytes_16bit": 269_030_016}
    return {"method": "lora", "rank": 8, "alpha": 16.0, **sizes, "base_bytes_download": 91_000_000, "sha256": "e" * 64}


def _rows_file(scored: int) -> dict[str, Any]:
    split = {"rows": 900, "tokens": 50_000, "trained_tokens": 18_000, "dropped": [], "families": {"queue": 450, "edit": 450}}
    return {
        "train": split,
        "validation": {**split, "rows": 90},
        "heldout": {"available": scored, "scored": scored, "families": {}},
        "leaks": {"exact": 0, "masked": 0, "ngram": 0, "examples": []},
        "packing": {"packed": True, "reason": "packed and single rows give the same logits"},
        "decoded_sample": {"prompt": "<user>Hi<end>", "trained": "Hello<end>"},
    }


def _place(tier: str, family: str, n: int) -> dict[str, Any]:
    row_id = f"{family}-{tier}-{n:03d}"
    return {"id": row_id, "tier": tier, "family": family, "group": f"{family}-{tier}-p{n // 2}"}


def _answer(place: dict[str, Any], arm: str, rates: tuple[float | None, ...], draw: random.Random) -> dict[str, Any]:
    rate = rates[TIERS.index(place["tier"])]
    right = draw.random() < (rate or 0.0)
    target = f"answer {place['id']}"
    return {
        **place,
        "prompt": f"question {place['id']}",
        "target": target,
        "output": target if right else f"something else by {arm}",
        "score": float(right),
        "lenient": float(right),
        "note": "",
        "stopped": True,
        "tokens": 12,
        "bits_per_byte": 1.2 if arm == "base" else 0.4,
        "target_bytes": len(target),
    }


def _baseline(place: dict[str, Any], shares: dict[str, tuple[float | None, ...]], draw: random.Random) -> dict[str, Any]:
    rates = {name: shares[name][TIERS.index(place["tier"])] for name in ("majority", "nearest_row")}
    found = {name: None if rate is None else float(draw.random() < rate) for name, rate in rates.items()}
    return {**place, **found, "nearest_id": None, "majority_answer": None}

"""Results of `make bench`: checks for equal work, ratios with their spread over turns, tables and a plot. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from nomoat.reports.format import markdown_table

ARMS = {  # the names in bench.json and the labels in tables and plots
    "ours": "nomoat",
    "trainer": "transformers.Trainer (padded, full logits)",
    "trl_default": "TRL's defaults",
    "trl_compiled": "TRL tuned (packed, compiled)",
}
RATIOS = {"trl_best": "trl_compiled", "trainer": "trainer", "trl_default": "trl_default"}  # keys in bench.json
FIRST_LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}  # mean loss per labelled token before any step
LAST_LOSS_TOLERANCE = 0.02  # validation loss after the last step


def arm_record(first_loss: float, warmup: dict[str, Any], turns: list[dict[str, Any]], last_loss: float | None) -> dict[str, Any]:
    """An arm's entry in bench.json.

    Losses are means per labelled token in nats; the last is None for an arm that chooses its own steps. An interval has `steps`,
    `tokens` (padding not counted), `seconds`, and `peak_bytes` (of GPU memory; on a CPU, resident).
    """
    return {
        "first_loss": first_loss,
        "warmup": warmup,
        "turns": turns,
        "last_loss": last_loss,
        "tokens_per_second": [turn["tokens"] / turn["seconds"] for turn in turns],
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
    }


def work_differences(arms: Mapping[str, Mapping[str, Any]], precision: str) -> list[str]:
    """One sentence per loss that differs from ours by more than its tolerance; empty where all arms did the same work."""
    first_allowed = FIRST_LOSS_TOLERANCE.get(precision, FIRST_LOSS_TOLERANCE["bfloat16"])
    losses = (("first_loss", "loss before any step", first_allowed), ("last_loss", "validation loss at the end", LAST_LOSS_TOLERANCE))
    return [
        f"{name}: {words} {arm[loss]:.4f}, ours {arms['ours'][loss]:.4f}, allowed difference {allowed:g}"
        for name, arm in arms.items()
        for loss, words, allowed in losses
        if arm[loss] is not None and not abs(arm[loss] - arms["ours"][loss]) <= allowed  # also where one is not a number
    ]


def compare_arms(arms: Mapping[str, Mapping[str, Any]], recipe_tokens: int) -> dict[str, Any]:
    """Ours relative to each peer, turn by turn.

    The time to compile is what the warm-up took beyond the time of its tokens later on. It is spread over the tokens of the whole recipe.
    """
    compiling, ratios = {}, {}
    for key, name in RATIOS.items():
        if name in arms:
            ours, theirs, slower = arms["ours"], arms[name], 1.0
            if name == "trl_compiled":
                rate, warmup = median(theirs["tokens_per_second"]), theirs["warmup"]
                compiling[name] = max(0.0, warmup["seconds"] - warmup["tokens"] / rate)
                slower += compiling[name] * rate / recipe_tokens
            speeds = zip(ours["tokens_per_second"], theirs["tokens_per_second"], strict=True)
            turns = zip(ours["turns"], theirs["turns"], strict=True)
            ratios[key] = {
                "arm": name,
                "tokens_per_second": spread(mine / other * slower for mine, other in speeds),
                "peak_memory": spread(mine["peak_bytes"] / other["peak_bytes"] for mine, other in turns),
            }
    return {"compile_seconds": compiling, "trl_best": next(iter(compiling), None), "ratios": ratios}


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and extremes of some turns."""
    ordered = sorted(values)
    return {"median": median(ordered), "lowest": ordered[0], "highest": ordered[-1]}


def arms_table(record: Mapping[str, Any]) -> str:
    """Markdown: each arm (one that no longer exists by its key), ours relative to each peer, and MFU."""
    lines = []
    for name, arm in record["arms"].items():
        last = "" if arm["last_loss"] is None else f", {arm['last_loss']:.3f} after"
        compiling = f", {record['compile_seconds'][name]:.0f} s of compiling" if name in record["compile_seconds"] else ""
        label = f"{ARMS.get(name, name)}: loss {arm['first_loss']:.4f} before{last}{compiling}"
        lines.append((label, *_cells("{:.0f}", spread(arm["tokens_per_second"])), f"{arm['peak_bytes'] / 1e9:.2f} GB"))
    return _table(record, [*lines, *_comparison(record, RATIOS.values())])


def speed_block(record: Mapping[str, Any], scoring: Mapping[str, Any]) -> str:
    """The README's table. TRL's defaults are left out: they compute in bfloat16, which the published CPU emulates."""
    turns = spread(theirs / ours for arm in scoring["arms"].values() for ours, theirs in arm["turns"])
    label = f"scoring relative to `model.generate` at batch size 8 ({scoring['identical']:.2%} of {scoring['rows']:,} answers identical)"
    generate = (label, *_cells("{:.2f}x", {**turns, "median": scoring["ratio"]}), "")
    return _table(record, [*_comparison(record, ("trl_compiled", "trainer")), generate])


def _table(record: Mapping[str, Any], lines: Iterable[tuple[str, ...]]) -> str:
    size = f"{record['steps']} steps of {record['tokens_a_step']} tokens, {record['precision']}, {record['threads']} threads"
    size += f", {record['device_name']}" if "device_name" in record else ""  # the first published record lacks it
    head = (size, "tokens/s", "range over turns", "peak memory")
    return markdown_table(head, lines)


def _comparison(record: Mapping[str, Any], peers: Iterable[str]) -> list[tuple[str, ...]]:
    """Ours relative to `peers`, and MFU (model FLOPs utilisation, Chowdhery et al. 2022, arXiv:2204.02311)."""
    lines, ratios = [], {ratio["arm"]: ratio for ratio in record["ratios"].values()}
    for ratio in [ratios[name] for name in peers if name in ratios]:
        memory = f"{ratio['peak_memory']['median']:.2f}x"
        lines.append((f"training relative to {ARMS[ratio['arm']]}", *_cells("{:.2f}x", ratio["tokens_per_second"]), memory))
    peak = f"MFU (peak {record['peak_flops_per_second'] / 1e9:.0f} GFLOP/s measured)"
    once = "MFU if the shared prefix is counted once, as computed"
    shares = ((peak, record["share_of_peak"]), (once, record["share_of_peak_shared_once"]))
    return [*lines, *((label, *_cells("{:.0%}", share), "") for label, share in shares)]


def _cells(form: str, values: Mapping[str, float]) -> tuple[str, str]:
    return form.format(values["median"]), f"{form.format(values['lowest'])} to {form.format(values['highest'])}"


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Tokens per second of each arm as an SVG: bars are medians, dots are turns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.5 * len(record["arms"])), layout="constrained")
    axes = figure.add_subplot()
    for name, arm in reversed(record["arms"].items()):
        label, rates = ARMS.get(name, name), arm["tokens_per_second"]
        axes.barh(label, median(rates), height=0.55, color="#2a6f97" if name == "ours" else "#b8c4cc")
        axes.plot(rates, [label] * len(rates), "o", color="#222222", markersize=3.5, alpha=0.6)
    axes.set_xlabel("tokens per second, padding not counted (bar: median; dots: turns)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})

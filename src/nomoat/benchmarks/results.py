"""What the benchmark found: checked to be the same work, then ratios with their spread, as bench.json, a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from nomoat.benchmarks.peers import OWN_STEPS, TRL_BEST, WORDS, BenchWork, Step
from nomoat.models.device import MATMUL_SIZE, matmul_flops_per_second
from nomoat.training.packing import common_prefix

# MERGED matrix_peak:
# How much of the machine's matrix arithmetic a training step uses: what the method needs, over the best rate seen here.
#
# Counted in multiplications and additions (FLOPs) of matrix products alone; norms, activations and the optimiser are not in it.


def step_flops(step: Step, shapes: Sequence[tuple[int, int]], head: tuple[int, int], rank: int, *, shared: bool) -> float:
    """FLOPs that LoRA needs for one step: forward, gradients to activations, and the adapter's own products.

    `shapes` are (inputs, outputs) of the adapted linears, `head` those of the output layer, which sees labelled tokens only. No
    recomputation, no padding, no gradient of a frozen weight. With `shared`, what all prompts of the step begin with counts once.
    Attention's own products are left out: below 1 % for rows of some hundred tokens.
    """
    begin = common_prefix([row.prompt_ids for row in step]) if shared and len(step) > 1 else 0
    tokens = sum(row.length for row in step) - begin * (len(step) - 1)
    labelled = sum(len(row.completion_ids) for row in step)
    base = sum(inputs * outputs for inputs, outputs in shapes)
    adapter = sum(rank * (inputs + outputs) for inputs, outputs in shapes)
    # base: 2 forward and 2 for the gradient to its input; adapter: 2 forward, 2 to its input, 2 to its weights
    return tokens * (4 * base + 6 * adapter) + labelled * 4 * head[0] * head[1]


def linear_shapes(work: BenchWork) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(inputs, outputs) of every linear of the base but its head, and those of the head; read from a model without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work.files.folder, local_files_only=True))
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return [(one.in_features, one.out_features) for one in linears], (head.in_features, head.out_features)


def peak_flops_per_second(shapes: Sequence[tuple[int, int]], tokens: int, precision: str, device: str) -> float:
    """FLOPs a second of the fastest `linear` among the step's own shapes (with `tokens` rows) and one of 2048 cubed."""
    every = sorted({*((tokens, inputs, outputs) for inputs, outputs in shapes), (MATMUL_SIZE, MATMUL_SIZE, MATMUL_SIZE)})
    return max(matmul_flops_per_second(*shape, precision, device) for shape in every)


FIRST_LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}  # mean loss per labelled token before any step
LAST_LOSS_TOLERANCE = 0.02  # validation loss after the last step


def same_work(courses: Mapping[str, ArmTimings], precision: str) -> list[str]:
    """Sentences on arms that did not do our work; empty when all did."""
    ours = courses["ours"]
    tolerance = FIRST_LOSS_TOLERANCE.get(precision, FIRST_LOSS_TOLERANCE["bfloat16"])
    found = []
    for name, course in courses.items():
        if not abs(course.first_loss - ours.first_loss) <= tolerance:
            found.append(f"{name}: loss before any step {course.first_loss:.4f}, ours {ours.first_loss:.4f}, allowed {tolerance:g} apart")
        if name not in OWN_STEPS and not _apart(course, ours) <= LAST_LOSS_TOLERANCE:
            ends = f"validation loss at the end {course.last_loss:.3f}, ours {ours.last_loss:.3f}"
            found.append(f"{name}: {ends}, allowed {LAST_LOSS_TOLERANCE} apart")
    return found


def _apart(course: ArmTimings, ours: ArmTimings) -> float:
    assert course.last_loss is not None and ours.last_loss is not None
    return abs(course.last_loss - ours.last_loss)


def build_record(courses: Mapping[str, ArmTimings], work: BenchWork, peaks: Sequence[float], flops: Mapping[str, float]) -> dict[str, Any]:
    """bench.json: every turn of every arm, the ratios of ours to each peer, and the share of the peak.

    `peaks` are FLOPs a second of the best matrix product, one a round; `flops` those of our steps' tokens after the warm-up, with
    what rows begin with counted for each row (`rows`) and once a pack (`computed`).
    """
    best = best_trl(courses, work)
    peers = {"trainer": "trainer", "trl_default": "trl_default", "trl_best": best}
    ours = courses["ours"]
    seconds = [turn.seconds for turn in ours.turns]
    shares = {
        which: _spread_text([total / len(seconds) / second / peak for second, peak in zip(seconds, peaks[1:], strict=True)])
        for which, total in flops.items()
    }
    return {
        "recipe": work.recipe.name,
        "precision": work.precision,
        "device": work.device,
        "device_name": work.device_name,
        "threads": work.threads,
        "learning_rate": work.learning_rate,
        "steps": work.size.steps,
        "tokens_a_step": round(work.tokens / len(work.steps)),
        "rows_a_step": round(len(work.rows) / len(work.steps), 2),
        "arms": {name: course.record() for name, course in courses.items()},
        "compile_seconds": {name: compile_seconds(course) for name, course in courses.items() if name == "trl_compiled"},
        "trl_best": best,
        "ratios": {peer: _ratios(courses, name, work) for peer, name in peers.items() if name is not None and name in courses},
        "peak_flops_per_second": statistics.median(peaks),
        "share_of_peak": shares["rows"],
        "share_of_peak_shared_once": shares["computed"],
        "not_the_same_work": same_work(courses, work.precision),
    }


def compile_seconds(course: ArmTimings) -> float:
    """What the warm-up took beyond the time of as many tokens at the arm's later speed."""
    assert course.warmup is not None
    return max(0.0, course.warmup.seconds - course.warmup.tokens / rate_of(course))


def rate_of(course: ArmTimings) -> float:
    """Median of the turns' tokens a second."""
    return statistics.median(turn.tokens_per_second for turn in course.turns)


def rate_with_compiling(name: str, course: ArmTimings, work: BenchWork) -> float:
    """Tokens a second over all tokens of the recipe, what compiling took included."""
    rate = rate_of(course)
    if name != "trl_compiled":
        return rate
    tokens = work.recipe_tokens
    return tokens / (compile_seconds(course) + tokens / rate)


def best_trl(courses: Mapping[str, ArmTimings], work: BenchWork) -> str | None:
    """TRL at its best: the fastest of its settings, compiling counted."""
    there = [name for name in TRL_BEST if name in courses]
    return max(there, key=lambda name: rate_with_compiling(name, courses[name], work), default=None)


def _ratios(courses: Mapping[str, ArmTimings], peer: str, work: BenchWork) -> dict[str, Any]:
    ours, theirs = courses["ours"], courses[peer]
    slowed = rate_with_compiling(peer, theirs, work) / rate_of(theirs)
    pairs = list(zip(ours.turns, theirs.turns, strict=True))
    return {
        "arm": peer,
        "tokens_per_second": _spread_text([mine.tokens_per_second / (other.tokens_per_second * slowed) for mine, other in pairs]),
        "peak_memory": _spread_text([mine.peak_bytes / other.peak_bytes for mine, other in pairs]),
    }


def _spread_text(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def table_of(record: Mapping[str, Any]) -> Table:
    """One line an arm."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm")
    for title in ("tokens/s", "range", "peak memory", "loss before", "loss after", "ours is"):
        table.add_column(title, justify="right")
    mine = statistics.median(record["arms"]["ours"]["tokens_per_second"])
    for name, arm in record["arms"].items():
        rates = arm["tokens_per_second"]
        note = f" (after {record['compile_seconds'][name]:.0f} s of compiling)" if name in record["compile_seconds"] else ""
        table.add_row(
            WORDS[name] + note,
            f"{statistics.median(rates):.0f}",
            f"{min(rates):.0f} to {max(rates):.0f}",
            f"{arm['peak_bytes'] / 1e9:.2f} GB",
            f"{arm['first_loss']:.4f}",
            "-" if arm["last_loss"] is None else f"{arm['last_loss']:.3f}",
            "" if name == "ours" else f"{mine / statistics.median(rates):.2f} x as fast",
        )
    return table


def headlines(record: Mapping[str, Any]) -> list[str]:
    """The ratios in words, TRL at its best first."""
    titles = {"trl_best": "TRL at its best", "trl_default": "TRL as it comes", "trainer": "plain Trainer"}
    lines = []
    for peer in (peer for peer in titles if peer in record["ratios"]):
        ratio = record["ratios"][peer]
        speed = ratio["tokens_per_second"]
        which = WORDS[ratio["arm"]]
        named = titles[peer] if which == titles[peer] else f"{titles[peer]} ({which})"
        lines.append(
            f"{speed['median']:.2f} x {named} in tokens/s, {speed['lowest']:.2f} to {speed['highest']:.2f} "
            f"turn by turn; {ratio['peak_memory']['median']:.2f} x its peak memory"
        )
    share, once = record["share_of_peak"], record["share_of_peak_shared_once"]
    lines.append(
        f"{share['median']:.0%} of the best matrix product's rate ({record['peak_flops_per_second'] / 1e9:.0f} GFLOP/s); "
        f"{once['median']:.0%} with what rows of a pack begin with counted once, as it is computed"
    )
    return lines


def speed_block(record: Mapping[str, Any], scoring: str) -> str:
    """Training and scoring in Markdown, for the README."""
    lines = [f"- {line}" for line in headlines(record)]
    lines[0] = lines[0].replace("- ", "- **", 1).replace(" in tokens/s", "** in tokens/s", 1)
    what = f"{record['steps']} steps of {record['tokens_a_step']} tokens in {record['precision']} with {record['threads']} threads"
    what += f" on {record['device_name']}" if "device_name" in record else ""  # the first published bench did not write it down
    return "\n".join([f"Training, {what}, all arms in turn:", "", *lines, "", f"Scoring, {scoring}."])


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Tokens a second of each arm, every turn a dot, as SVG."""
    from matplotlib.figure import Figure

    names = list(record["arms"])
    figure = Figure(figsize=(8, 0.9 + 0.5 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(reversed(names)):
        rates = record["arms"][name]["tokens_per_second"]
        axes.barh(place, statistics.median(rates), height=0.55, color="#2a6f97" if name == "ours" else "#b8c4cc")
        axes.plot(rates, [place] * len(rates), "o", color="#222222", markersize=3.5, alpha=0.6)
    axes.set_yticks(range(len(names)), [WORDS[name] for name in reversed(names)])
    axes.set_xlabel("tokens of rows a second (bar: median; dots: turns)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


@dataclass(frozen=True)
class TimedInterval:
    """One stretch of steps of one arm: tokens of rows, padding not counted, wall seconds, and peak memory (the device's, or resident)."""

    steps: int
    tokens: int
    seconds: float
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Useful tokens a second."""
        return self.tokens / self.seconds


@dataclass
class ArmTimings:
    """What one arm did: losses are means per labelled token, in nats; the last is not asked of an arm whose steps are its own."""

    first_loss: float
    warmup: TimedInterval | None = None
    turns: tuple[TimedInterval, ...] = ()
    last_loss: float | None = None

    def record(self) -> dict[str, Any]:
        """For bench.json."""
        return {
            **asdict(self),
            "turns": list(map(asdict, self.turns)),
            "tokens_per_second": [turn.tokens_per_second for turn in self.turns],
            "peak_bytes": self.peak_bytes,
        }

    @property
    def peak_bytes(self) -> int:
        """Most memory of any turn; loading is not in it."""
        return max((turn.peak_bytes for turn in self.turns), default=0)

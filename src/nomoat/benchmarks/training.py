"""`make bench`: all arms train the same steps, each in its own process, in turns since a machine's speed drifts; and our MFU."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import disable_progress_bars
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, TrainerCallback

from nomoat.benchmarks.peers import BUILDERS, BenchArm, BenchWork, Step
from nomoat.benchmarks.results import ARMS, arm_record, compare_arms, spread, work_differences
from nomoat.cli import ProgressBar, configure_logging
from nomoat.config.schema import Recipe, learning_rate_for
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.prepare import load_raw_data, tokenize_data
from nomoat.errors import RunFailed
from nomoat.models.base import load_tokenizer, open_base
from nomoat.models.device import MATMUL_SIZE, matmul_flops_per_second
from nomoat.runs import provenance
from nomoat.runs.meters import MemoryMeter
from nomoat.training.packing import common_prefix, schedule_steps

PROBE_ROWS = 32  # whose loss is compared before any step
VALIDATION_ROWS = 64  # or a few more, evenly spread: enough to show whether two arms learnt the same
REWARM_STEPS = 1  # of a turn, not timed: a process that has waited for minutes may have to load pages again
SLOWER = 0.1  # of the recipe's learning rate: at the full one, rounding alone drives arms apart within fifty steps


def make_work(recipe: Recipe, root: Path, *, turns: int, steps_per_turn: int, warmup_steps: int) -> BenchWork:
    """The recipe's first steps with one pack each, repeated after an epoch. NomoatError for a recipe or base that cannot be used."""
    data, base = load_raw_data(recipe, root), open_base(recipe)
    template = ChatTemplate(load_tokenizer(base.files))
    tokenized = tokenize_data(recipe, data, template)
    template.tokenizer.pad_token_id, template.tokenizer.padding_side = template.pad_id, "right"
    train, lengths = recipe.train, [row.length for row in tokenized.train]
    epoch = schedule_steps(lengths, epochs=1, batch_tokens=train.pack_tokens, pack_tokens=train.pack_tokens, seed=train.seed).steps
    stops = [warmup_steps + turn * (REWARM_STEPS + steps_per_turn) for turn in range(turns + 1)]
    constant = {"learning_rate": SLOWER * learning_rate_for(recipe, 0), "schedule": "constant", "warmup": 0.0}
    steps = tuple(tuple(tokenized.train[row] for pack in epoch[number % len(epoch)] for row in pack) for number in range(stops[-1]))
    return BenchWork(
        recipe=recipe.model_copy(update={"train": train.model_copy(update=constant)}),
        base=base,
        tokenizer=template.tokenizer,
        steps=steps,
        rows=[row for step in steps for row in step],
        intervals=(range(warmup_steps), *(range(stop - steps_per_turn, stop) for stop in stops[1:])),
        validation=tokenized.validation[:: max(1, len(tokenized.validation) // VALIDATION_ROWS)],
        recipe_tokens=round(train.epochs * sum(lengths)),
    )


def run_bench(work: BenchWork, root: Path, arms: list[str], console: Console) -> dict[str, Any]:
    """Measure `arms`, ours among them: bench.json, with the code, packages and machine that it was measured with."""
    base, device, step_tokens = work.base, work.base.device, [sum(row.length for row in step) for step in work.steps]
    average = round(sum(step_tokens) / len(step_tokens))
    size = f"{len(step_tokens)} steps of about {average} tokens, {base.precision} on {device.name}, {device.threads} threads"
    console.print(f"bench    {size}, {len(arms)} arms in turn", highlight=False, soft_wrap=True)
    shapes, head = linear_shapes(base.files.folder)
    peaks: list[float] = []
    with ProgressBar("turns", len(work.intervals) * len(arms), console) as bar:
        timings = interleave(arms, work, bar, lambda: peaks.append(peak_flops(shapes, max(step_tokens), base.precision, device.kind)))
    turns = list(zip(timings["ours"]["turns"], peaks[1:], strict=True))
    timed = [work.steps[number] for interval in work.intervals[1:] for number in interval]
    flops = [sum(step_flops(step, shapes, head, work.recipe.lora.rank, shared=shared) for step in timed) for shared in (False, True)]
    share, share_once = (spread(total / len(turns) / turn["seconds"] / peak for turn, peak in turns) for total in flops)
    return {
        "recipe": work.recipe.name,
        "precision": base.precision,
        "device": device.kind,
        "device_name": device.name,
        "threads": device.threads,
        "learning_rate": work.recipe.train.learning_rate,
        "steps": len(work.steps),
        "tokens_a_step": average,
        "rows_a_step": round(len(work.rows) / len(work.steps), 2),
        "arms": timings,
        **compare_arms(timings, work.recipe_tokens),
        "peak_flops_per_second": median(peaks),
        "share_of_peak": share,
        "share_of_peak_shared_once": share_once,
        "not_the_same_work": work_differences(timings, base.precision),
        **provenance.code_state(root),
        "packages": {**provenance.versions(), **({"trl": version("trl")} if {"trl_default", "trl_compiled"} & set(arms) else {})},
        **provenance.machine(),
    }


def interleave(names: list[str], work: BenchWork, bar: ProgressBar, after_round: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """Run all arms turn by turn, the warm-up first; `arm_record` of each. RunFailed where one fails, which ends all processes."""
    arms = {name: arm_results(name, work) for name in names}
    try:
        results = {name: [next(arm)] for name, arm in arms.items()}  # loading is not timed, but would disturb a warm-up
        for number in range(len(work.intervals)):
            first = number % len(names)  # another arm begins each round, so that none always follows the same one
            for name in names[first:] + names[:first]:
                interval = next(arms[name])
                results[name].append(interval)
                bar.advance(1, f"{ARMS[name]}: {interval['tokens'] / interval['seconds']:.0f} tok/s")
            after_round()
        return {name: arm_record(first, warmup, turns, next(arms[name])) for name, (first, warmup, *turns) in results.items()}
    finally:
        for arm in arms.values():
            arm.close()


def arm_results(name: str, work: BenchWork) -> Generator[Any, None, None]:
    """Yield the loss before any step, an interval per turn, and the loss at the end, each computed on demand in the arm's own process."""
    context = multiprocessing.get_context("spawn")
    pipe, childs_end = context.Pipe()
    process = context.Process(target=_run_arm, args=(name, work, childs_end), daemon=True)
    process.start()
    childs_end.close()
    try:
        while True:
            pipe.send("next")
            yield pipe.recv()
    except (EOFError, OSError):
        process.join()
        raise RunFailed(f"arm {name} failed with exit code {process.exitcode}; its error is above (-9: killed, out of memory?)") from None
    finally:
        process.terminate()
        process.join()


def _run_arm(name: str, work: BenchWork, pipe: Connection) -> None:
    """The arm's process: each result is computed and sent when the parent asks for it."""
    configure_logging()
    disable_progress_bars()
    torch.set_num_threads(work.base.device.threads)
    arm = BUILDERS[name](work)
    pipe.recv()
    pipe.send(arm.mean_loss(work.rows[:PROBE_ROWS]))
    arm.trainer.add_callback(TurnCallback(arm, work, pipe))
    arm.trainer.remove_callback(PrinterCallback)
    arm.trainer.train()
    pipe.recv()
    pipe.send(None if arm.own_intervals else arm.mean_loss(work.validation))


class TurnCallback(TrainerCallback):
    """Waits for the arm's turn before an interval of steps, times all of it except loading the first step's rows, and reports it."""

    def __init__(self, arm: BenchArm, work: BenchWork, pipe: Connection) -> None:
        self.steps, self.intervals = ((), list(arm.own_intervals)) if arm.own_intervals else (work.steps, list(work.intervals))
        self.pipe, self.memory, self.started, self.waits_at, self.tokens_before = pipe, MemoryMeter(), 0.0, 0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.waits_at:
            self.pipe.recv()
            self.memory.start()
        if state.global_step == self.intervals[0].start:
            self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        if state.global_step == self.intervals[0].stop:
            seconds, interval, self.waits_at = time.perf_counter() - self.started, self.intervals.pop(0), state.global_step
            own_tokens, self.tokens_before = state.num_input_tokens_seen - self.tokens_before, state.num_input_tokens_seen
            tokens = sum(row.length for number in interval for row in self.steps[number]) if self.steps else own_tokens
            peak = self.memory.peak_device_bytes() or self.memory.peak_resident_bytes()
            self.pipe.send({"steps": len(interval), "tokens": tokens, "seconds": seconds, "peak_bytes": peak})


def step_flops(step: Step, shapes: Sequence[tuple[int, int]], head: tuple[int, int], rank: int, *, shared: bool) -> float:
    """FLOPs (multiplications and additions of matrix products) that LoRA needs for one step.

    `shapes` are (inputs, outputs) of the adapted linears, `head` those of the output layer, which sees labelled tokens only. Not counted:
    recomputation, padding, gradients of frozen weights, and attention's own products (below 1 % for rows of a few hundred tokens). With
    `shared`, the prompts' common prefix counts once.
    """
    prefix = common_prefix([row.prompt_ids for row in step]) if shared and len(step) > 1 else 0
    tokens = sum(row.length for row in step) - prefix * (len(step) - 1)
    labelled = sum(len(row.completion_ids) for row in step)
    base = sum(inputs * outputs for inputs, outputs in shapes)
    adapter = sum(rank * (inputs + outputs) for inputs, outputs in shapes)
    # base: 2 forward and 2 for the gradient to its input; adapter: 2 forward, 2 to its input, 2 to its weights
    return tokens * (4 * base + 6 * adapter) + labelled * 4 * head[0] * head[1]


def linear_shapes(folder: Path) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(inputs, outputs) of every linear of the base in `folder` except its head, and those of the head; no weights are read."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return [(linear.in_features, linear.out_features) for linear in linears], (head.in_features, head.out_features)


def peak_flops(shapes: Sequence[tuple[int, int]], tokens: int, precision: str, device: str) -> float:
    """FLOP/s of the fastest `linear` among `shapes` (with `tokens` tokens) and one of 2048 cubed."""
    products = {*((tokens, *shape) for shape in shapes), (MATMUL_SIZE, MATMUL_SIZE, MATMUL_SIZE)}
    return max(matmul_flops_per_second(*product, precision, device) for product in sorted(products))

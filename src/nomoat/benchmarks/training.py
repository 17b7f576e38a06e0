"""`make bench`: the work made from a recipe, all arms taking turns on it, and the record of what came out."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from nomoat.benchmarks.peers import WORDS, BenchArm, BenchSize, BenchWork, build_arm, fixed_steps
from nomoat.benchmarks.results import ArmTimings, TimedInterval, build_record, draw, linear_shapes, peak_flops_per_second, step_flops
from nomoat.cli import ProgressBar
from nomoat.config.schema import Recipe, learning_rate_for
from nomoat.data.chat_template import ChatTemplate
from nomoat.errors import NomoatError, RunFailed
from nomoat.io import write_json
from nomoat.models.base import fetch_base, load_tokenizer
from nomoat.models.device import choose_device, training_precision
from nomoat.runs import provenance

# MERGED bench_turns:
# Arms that take turns: each in a process of its own, loaded once, waiting while another one runs.


class ArmProcess:
    """The parent's side of one arm."""

    def __init__(self, name: str, work: BenchWork) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run_arm, args=(name, work, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def start(self) -> ArmTimings:
        """Wait until the arm is loaded; the loss before any step."""
        self.course = ArmTimings(first_loss=self._hear())
        return self.course

    def turn(self) -> TimedInterval:
        """Let the arm run one stretch (the first: its warm-up)."""
        self._pipe.send("go")
        found = TimedInterval(*self._hear())
        if self.course.warmup is None:
            self.course.warmup = found
        else:
            self.course.turns += (found,)
        return found

    def finish(self) -> ArmTimings:
        """The loss after the last step; the process ends."""
        self._pipe.send("finish")
        self.course.last_loss = self._hear()
        self._process.join()
        return self.course

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.terminate()
        self._process.join()

    def _hear(self) -> Any:
        try:
            kind, content = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RunFailed(f"arm {self.name}: its process ended with exit code {self._process.exitcode} (out of memory?)") from None
        if kind == "missing":
            raise NomoatError(f"arm {self.name} needs {content}: install it with `.venv/bin/pip install -e '.[bench]'`, or leave it out")
        if kind == "error":
            raise RunFailed(f"arm {self.name} failed:\n{content}")
        return content


def _run_arm(name: str, work: BenchWork, pipe: Connection) -> None:
    """The arm's process."""
    from nomoat.cli import configure_logging

    configure_logging()
    try:
        _run(build_arm_here(name, work), work, pipe)
    except ModuleNotFoundError as error:
        pipe.send(("missing", error.name))
    except Exception:
        pipe.send(("error", traceback.format_exc()))


def build_arm_here(name: str, work: BenchWork) -> BenchArm:
    """The arm, with this process's threads set as the work says."""
    import torch

    torch.set_num_threads(work.threads)
    return build_arm(name, work)


def _run(arm: BenchArm, work: BenchWork, pipe: Connection) -> None:
    from transformers import PrinterCallback

    pipe.send(("first_loss", arm.mean_loss(work.probe)))
    arm.trainer.add_callback(_turn_taker(arm, pipe))
    arm.trainer.remove_callback(PrinterCallback)
    arm.trainer.train()
    pipe.recv()  # "finish"
    pipe.send(("finish", None if arm.own_steps else arm.mean_loss(work.validation)))


def _turn_taker(arm: BenchArm, pipe: Connection) -> Any:
    """A callback that waits for its turn before a stretch and tells its time after it.

    Timed from the begin of the first step after the waking ones to the end of the last: forward, backward, optimiser, and the data of
    all steps but the first.
    """
    from transformers import TrainerCallback

    from nomoat.runs.meters import MemoryMeter

    memory = MemoryMeter()

    class TakeTurns(TrainerCallback):
        def __init__(self) -> None:
            self.left, self.done, self.began = 0, 0, 0.0
            self.size = arm.warmup_steps

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.left == 0:
                pipe.recv()  # "go"
                memory.start()
                self.left = self.size + (arm.waking_steps if self.done else 0)
            if self.left == self.size:
                self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _wait_for(args.device)
            self.left -= 1
            if self.left >= self.size:
                self.done += 1  # a waking step
            elif self.left == 0:
                seconds = time.perf_counter() - self.began
                tokens = sum(arm.tokens[self.done : self.done + self.size])
                peak = memory.peak_device_bytes() or memory.peak_resident_bytes()
                pipe.send(("turn", (self.size, tokens, seconds, peak)))
                self.done += self.size
                self.size = arm.steps_per_turn

    return TakeTurns()


def _wait_for(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def interleave(
    names: list[str], work: BenchWork, *, between: Callable[[], None], told: Callable[[str, TimedInterval], None]
) -> dict[str, ArmTimings]:
    """Run all arms turn by turn, so that none has the machine to itself while it is faster. `between` is called after each round.

    NomoatError where an arm's library is missing, RunFailed where an arm fails; either ends all processes.
    """
    runners: list[ArmProcess] = []
    try:
        for name in names:  # one after another: loading is not timed, but would disturb a warm-up
            runners.append(ArmProcess(name, work))
            runners[-1].start()
        for round_number in range(1 + work.size.turns):
            # each round starts with another arm, so that none always follows the same one
            start = round_number % len(runners)
            for runner in runners[start:] + runners[:start]:
                told(runner.name, runner.turn())
            between()
        return {runner.name: runner.finish() for runner in runners}
    finally:
        for runner in runners:
            runner.stop()


VALIDATION_ROWS = 64  # or a few more, evenly spread: whether two arms learnt the same shows in fewer than training looks at
SLOWER = 0.1  # of the recipe's learning rate: at the full one, rounding alone drives arms apart within fifty steps


def make_work(recipe: Recipe, root: Path, size: BenchSize, scratch: Path) -> BenchWork:
    """The recipe's first steps as lists of rows; NomoatError for a recipe or a base that cannot be used."""
    from nomoat.data.prepare import load_raw_data, tokenize_data

    loaded = load_raw_data(recipe, root)
    device = choose_device(recipe.hardware)
    files = fetch_base(recipe.base)
    conversation = ChatTemplate(load_tokenizer(files))
    prepared = tokenize_data(recipe, loaded, conversation)
    return BenchWork(
        recipe=recipe,
        files=files,
        precision=training_precision(recipe, device),
        device=device.kind,
        device_name=device.name,
        threads=device.threads,
        learning_rate=SLOWER * learning_rate_for(recipe, 0),
        pad_id=conversation.pad_id,
        steps=fixed_steps(recipe, prepared.train, size),
        validation=prepared.validation[:: max(1, len(prepared.validation) // VALIDATION_ROWS)],
        size=size,
        recipe_tokens=round(recipe.train.epochs * sum(row.length for row in prepared.train)),
        scratch=scratch,
    )


def run_bench(recipe: Recipe, root: Path, names: list[str], size: BenchSize, scratch: Path, console: Console) -> dict[str, Any]:
    """Measure; the record of `bench_record.build_record` with where it was made."""
    work = make_work(recipe, root, size, scratch)
    console.print(
        f"bench    {len(work.steps)} steps of about {work.tokens / len(work.steps):.0f} tokens, {work.precision} on {work.device_name}, "
        f"{work.threads} threads, {len(names)} arms in turn",
        highlight=False,
    )
    shapes, head = linear_shapes(work)
    tokens = max(sum(row.length for row in step) for step in work.steps)
    peaks: list[float] = []
    with ProgressBar("turns", (1 + size.turns) * len(names), console) as bar:

        def told(name: str, turn: TimedInterval) -> None:
            bar.advance(1, f"{WORDS[name]}: {turn.tokens_per_second:.0f} tok/s")

        def between() -> None:
            peaks.append(peak_flops_per_second(shapes, tokens, work.precision, work.device))

        courses = interleave(names, work, between=between, told=told)
    flops = {
        which: sum(step_flops(work.steps[number], shapes, head, recipe.lora.rank, shared=which == "computed") for number in size.timed)
        for which in ("rows", "computed")
    }
    record = build_record(courses, work, peaks, flops)
    return {**record, **provenance.code_state(root), "packages": {**provenance.versions(), **_trl()}, **provenance.machine()}


def _trl() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"trl": version("trl")}
    except PackageNotFoundError:
        return {}


def write_bench(record: dict[str, Any], folder: Path) -> None:
    """bench.json and bench.svg; an earlier pair is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", record)
    draw(record, folder / "bench.svg")

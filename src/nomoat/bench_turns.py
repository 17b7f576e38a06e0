"""Arms that take turns: each in a process of its own, loaded once, waiting while another one runs."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from nomoat.bench_arms import build_arm
from nomoat.bench_parts import Arm
from nomoat.bench_work import BenchWork
from nomoat.errors import NomoatError, RunFailed


@dataclass(frozen=True)
class Turn:
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
class Course:
    """What one arm did: losses are means per labelled token, in nats; the last is not asked of an arm whose steps are its own."""

    first_loss: float
    warmup: Turn | None = None
    turns: tuple[Turn, ...] = ()
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


class Runner:
    """The parent's side of one arm."""

    def __init__(self, name: str, work: BenchWork) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run_arm, args=(name, work, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def start(self) -> Course:
        """Wait until the arm is loaded; the loss before any step."""
        self.course = Course(first_loss=self._hear())
        return self.course

    def turn(self) -> Turn:
        """Let the arm run one stretch (the first: its warm-up)."""
        self._pipe.send("go")
        found = Turn(*self._hear())
        if self.course.warmup is None:
            self.course.warmup = found
        else:
            self.course.turns += (found,)
        return found

    def finish(self) -> Course:
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
    from nomoat.quiet import quieten

    quieten()
    try:
        _run(build_arm_here(name, work), work, pipe)
    except ModuleNotFoundError as error:
        pipe.send(("missing", error.name))
    except Exception:
        pipe.send(("error", traceback.format_exc()))


def build_arm_here(name: str, work: BenchWork) -> Arm:
    """The arm, with this process's threads set as the work says."""
    import torch

    torch.set_num_threads(work.threads)
    return build_arm(name, work)


def _run(arm: Arm, work: BenchWork, pipe: Connection) -> None:
    from transformers import PrinterCallback

    pipe.send(("first_loss", arm.mean_loss(work.probe)))
    arm.trainer.add_callback(_turn_taker(arm, pipe))
    arm.trainer.remove_callback(PrinterCallback)
    arm.trainer.train()
    pipe.recv()  # "finish"
    pipe.send(("finish", None if arm.own_steps else arm.mean_loss(work.validation)))


def _turn_taker(arm: Arm, pipe: Connection) -> Any:
    """A callback that waits for its turn before a stretch and tells its time after it.

    Timed from the begin of the first step after the waking ones to the end of the last: forward, backward, optimiser, and the data of
    all steps but the first.
    """
    from transformers import TrainerCallback

    from nomoat.meters import MemoryMeter

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


def take_turns(names: list[str], work: BenchWork, *, between: Callable[[], None], told: Callable[[str, Turn], None]) -> dict[str, Course]:
    """Run all arms turn by turn, so that none has the machine to itself while it is faster. `between` is called after each round.

    NomoatError where an arm's library is missing, RunFailed where an arm fails; either ends all processes.
    """
    runners: list[Runner] = []
    try:
        for name in names:  # one after another: loading is not timed, but would disturb a warm-up
            runners.append(Runner(name, work))
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

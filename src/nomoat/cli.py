"""The parts that every script shares: arguments, exit codes, quiet libraries, and progress with time left.

Exit codes: 0 done, 1 the work was done and its result is a failure (RunFailed), 2 bad input (any other NomoatError), 130 stopped by
Ctrl-C or SIGTERM (kill, a batch system, a container's stop).
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nomoat.errors import NomoatError

ROOT = Path(__file__).resolve().parents[2]  # the repository: scripts are run from a checkout
LINES = 10  # of progress where there is no terminal to draw on
MINUTE = 60.0  # the longest silence, in seconds


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the script's own docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def recipe_parser(doc: str | None, *, default: Path | None = None) -> argparse.ArgumentParser:
    """A parser that takes a recipe and overrides; parse with `parse_intermixed_args`, since an override may follow an option."""
    parser = script_parser(doc)
    example = "recipes/smollm2-135m.yaml"
    parser.add_argument("recipe", type=Path, nargs="?" if default else None, default=default, help=f"a recipe, such as {example}")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe, such as train.learning_rate=5e-4")
    return parser


def explain(error: BaseException) -> str | None:
    """The message for an error whose cause lies outside the program, or None for a bug of ours."""
    if isinstance(error, NomoatError):
        return str(error)
    if _is_full_disk(error):
        return f"the disk is full ({error}): nothing finished was lost; free some space and run the same command again"
    if isinstance(error, PermissionError):
        return f"no permission for {error.filename}: choose a folder you may write to"
    return None


def _is_full_disk(error: BaseException) -> bool:
    """Also where torch or safetensors have reworded the system's error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "PytorchStreamWriter failed writing", "Disk quota exceeded"))


def _stop(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and leave with its exit code; a known error is one message on stderr, and SIGTERM is handled like Ctrl-C."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        print("\nstopped: finished work is kept; the same command resumes it", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def configure_logging() -> None:
    """Turn off other libraries' progress bars and advice; their errors stay. To be called before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own bars follow it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("bitsandbytes", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks transformers for the old name
    imported = sys.modules.get("transformers.utils.logging")  # it has read its environment already
    if imported is not None:
        imported.set_verbosity_error()
        imported.disable_progress_bar()


class ProgressBar:
    """`with ProgressBar("training", 100, console) as bar: bar.advance(1, "loss 0.5")`.

    A bar on a terminal; elsewhere a line every tenth, and at least one per minute.
    """

    def __init__(self, title: str, total: int, console: Console) -> None:
        self.title, self.total, self.console, self.done = title, total, console, 0
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task(title, total=total, facts="")
        self._printed = time.monotonic()

    def __enter__(self) -> ProgressBar:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def advance(self, count: int, facts: str = "") -> None:
        """`count` more are done; `facts` is shown next to them."""
        before, self.done = self.done, self.done + count
        self._progress.update(self._task, advance=count, facts=facts)
        tenth = before * LINES // self.total != self.done * LINES // self.total
        if not self.console.is_terminal and (tenth or time.monotonic() - self._printed >= MINUTE):
            seconds = self._progress.tasks[0].time_remaining
            parts = [f"{self.title} {self.done}/{self.total}", facts, f"{seconds:.0f} s left" if seconds else ""]
            self.console.print(", ".join(part for part in parts if part), highlight=False, soft_wrap=True)
            self._printed = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._progress.stop()


def still_working(title: str, console: Console, *, every: float = MINUTE) -> AbstractContextManager[None]:
    """A line per minute while the block runs, for work that has no steps to count."""
    began = time.monotonic()
    return repeating(lambda: console.print(f"{title}: {time.monotonic() - began:.0f} s so far", highlight=False), every)


@contextmanager
def repeating(action: Callable[[], None], every: float) -> Iterator[None]:
    """Call `action` in a thread, every so many seconds while the block runs."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(every):
            action()

    thread = threading.Thread(target=repeat, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

"""Progress with time left: a bar on a terminal, a line every tenth elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES = 10  # printed where there is no terminal to draw on


class ProgressBar:
    """`with Bar("training", 100, console) as bar: bar.advance(1, "loss 0.5")`."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self.title, self.total, self.console, self.done = title, total, console, 0
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task(title, total=total, facts="")

    def __enter__(self) -> ProgressBar:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def advance(self, count: int, facts: str = "") -> None:
        """`count` more are done; `facts` is shown beside them."""
        before, self.done = self.done, self.done + count
        self._progress.update(self._task, advance=count, facts=facts)
        if not self.console.is_terminal and before * LINES // self.total != self.done * LINES // self.total:
            self.console.print(f"{self.title} {self.done}/{self.total} {facts}{self._left()}", highlight=False)

    def _left(self) -> str:
        seconds = self._progress.tasks[0].time_remaining
        return f", {seconds:.0f} s left" if seconds else ""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._progress.stop()

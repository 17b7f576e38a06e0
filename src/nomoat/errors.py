"""What the user did wrong, said once, and the exit code that goes with it.

NomoatError            exit 2   bad input: the message says what, where and what to do
+-- RecipeError        exit 2   every problem of a recipe at once
+-- RunFailed          exit 1   the work was done and its result is a failure (gate, regression)
KeyboardInterrupt      exit 130 stopped by Ctrl-C or by SIGTERM (kill, a batch system, a container's stop); what was saved is said
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class NomoatError(Exception):
    """Bad input or a bad environment: printed as one message, never as a traceback."""

    exit_code = 2


class RecipeError(NomoatError):
    """A recipe that cannot be used; `problems` holds one line for each thing wrong with it."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{where} is not a valid recipe:\n" + "\n".join(f"  {p}" for p in problems))


class RunFailed(NomoatError):
    """The run finished and failed: its adapter is not real, or it got worse where that is refused."""

    exit_code = 1


def quoted(value: Any) -> str:
    """A value as a message quotes it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for a near miss, and always what is allowed."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return (f"; did you mean {near[0]!r}?" if near else "") + f" (allowed: {', '.join(known) or 'none'})"

"""Errors that the user can correct, and the exit code of each.

NomoatError            exit 2   bad input: the message says what is wrong, where, and what to do
+-- RecipeError        exit 2   every problem of a recipe at once
+-- RunFailed          exit 1   the work was done and its result is a failure (adapter check, regression)
KeyboardInterrupt      exit 130 stopped by Ctrl-C or by SIGTERM (kill, a batch system, a container's stop), after saying what was saved
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class NomoatError(Exception):
    """Bad input or a bad environment: printed as one message, never as a traceback."""

    exit_code = 2


class RecipeError(NomoatError):
    """A recipe that cannot be used; `problems` has one line per problem."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{where} is not a valid recipe:\n" + "\n".join(f"  {p}" for p in problems))


class RunFailed(NomoatError):
    """The run finished and failed: its adapter does not work, or scores fell where that is refused."""

    exit_code = 1


def quoted(value: Any) -> str:
    """A value as a message quotes it, at most 60 characters long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters long; the error's class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for a near miss, then the allowed words."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return (f"; did you mean {near[0]!r}?" if near else "") + f" (allowed: {', '.join(known) or 'none'})"

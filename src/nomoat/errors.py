"""What the user did wrong, said once, and the exit code that goes with it.

NomoatError            exit 2   bad input: the message says what, where and what to do
+-- RecipeError        exit 2   every problem of a recipe at once
+-- RunFailed          exit 1   the work was done and its result is a failure (gate, regression)
KeyboardInterrupt      exit 130 stopped by Ctrl-C or by SIGTERM (kill, a batch system, a container's stop); what was saved is said
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn


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
    """Also where torch or safetensors have put the system's error into words of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "PytorchStreamWriter failed writing", "Disk quota exceeded"))


def _stop(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and leave with its exit code; a known error is one message on stderr, and SIGTERM is heeded as Ctrl-C is."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        print("\nstopped: what was finished is kept; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))

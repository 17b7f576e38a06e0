"""Our own progress and messages only; libraries keep their errors. To be called before they are imported."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from nomoat.errors import NomoatError


def configure_logging() -> None:
    """Turn off other libraries' progress bars and advice that does not concern the user of a recipe."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("bitsandbytes", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks transformers for the old name
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


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

"""Scripts run in separate processes that begin with the libraries imported: a parent imports them once, and forks for each script.

Importing torch, transformers and peft takes longer than what most tests are about. Every script still has its own process, its own
environment and its own exit code. What reads the environment while it is imported (HF_HUB_OFFLINE, HF_DATASETS_CACHE) has read the
parent's: where a test changes that, it starts a fresh interpreter.

Run as a script, this file is the parent: one JSON request a line on stdin, one exit code a line on stdout.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = (
    "bitsandbytes",
    "datasets",
    "matplotlib.pyplot",
    "nomoat.pipeline.reevaluate",
    "nomoat.reports.html",
    "nomoat.pipeline.finetune",
    "peft",
    "scipy.stats",
    "torch",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
)


def run_warm(command: list[str], folder: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` does it, for a command whose first word is a Python script."""
    with tempfile.TemporaryDirectory() as kept:
        files = [str(Path(kept) / name) for name in ("out", "err")]
        request = {"command": command, "folder": str(folder), "environment": environment, "files": files, "timeout": timeout}
        code = _ask(_parent(), request)
        out, err = (Path(file).read_text(encoding="utf-8", errors="replace") for file in files)
    if code is None:
        raise subprocess.TimeoutExpired(command, timeout, out, err)
    return subprocess.CompletedProcess(command, code, out, err)


@cache
def _parent() -> subprocess.Popen[str]:
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    parent = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, **one_thread, "PYTHONSAFEPATH": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(parent.kill)
    return parent


def _ask(parent: subprocess.Popen[str], request: dict[str, Any]) -> int | None:
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(json.dumps(request) + "\n")
    parent.stdin.flush()
    answer = json.loads(parent.stdout.readline())
    return None if answer is None else int(answer)


def _serve(requests: IO[str], answers: IO[str]) -> None:
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        answers.write(json.dumps(_wait(child, request["timeout"])) + "\n")
        answers.flush()


def _become(request: dict[str, Any]) -> None:
    """The child: from here on it is the script, and it ends with the script's exit code."""
    import runpy
    import traceback

    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for file, number in zip(request["files"], (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = request["command"]
    code: Any = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()
    os._exit(code or 0)


def _wait(child: int, timeout: float) -> int | None:
    """The child's exit code as subprocess tells it (minus the signal where one ended it); None where it took too long."""
    import signal
    import time

    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)

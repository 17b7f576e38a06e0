"""What every script shares: exit codes, messages, and progress that is never silent for long."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from nomoat import cli
from nomoat.cli import ProgressBar, explain, recipe_parser, still_working
from nomoat.errors import NomoatError


def piped() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_piped_bar_prints_every_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    console = piped()
    with ProgressBar("training", 100, console) as bar:
        for _ in range(100):
            bar.advance(1, "loss 0.5")
    assert len(lines(console)) == 10 and lines(console)[0].startswith("training 10/100, loss 0.5")


def test_a_piped_bar_is_silent_for_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    console = piped()
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    with ProgressBar("training", 100_000, console) as bar:
        for _ in range(10):
            now[0] += 30
            bar.advance(1)
    assert len(lines(console)) == 5


def test_work_without_steps_says_that_it_goes_on() -> None:
    console = piped()
    with still_working("fetching the base", console, every=0.05):
        time.sleep(0.3)
    assert len(lines(console)) >= 2 and lines(console)[0].startswith("fetching the base: ")
    quick = piped()
    with still_working("fetching the base", quick):
        pass
    assert lines(quick) == []


def test_a_full_disk_and_a_forbidden_folder_are_messages_and_a_bug_is_not() -> None:
    assert "disk is full" in str(explain(OSError(28, "No space left on device")))
    assert "no permission for x" in str(explain(PermissionError(13, "denied", "x")))
    assert explain(NomoatError("bad")) == "bad" and explain(KeyError("bug")) is None


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("NomoatError('no such key')", 2, "error: no such key"),
        ("RunFailed('not real')", 1, "error: not real"),
        ("KeyboardInterrupt", 130, "stopped: finished work is kept; the same command resumes it"),
    ],
)
def test_a_script_ends_with_its_exit_code_and_one_message(raised: str, code: int, said: str) -> None:
    source = f"from nomoat.cli import run_script\nfrom nomoat.errors import *\ndef main(): raise {raised}\nrun_script(main)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == code and done.stderr.strip() == said


def test_overrides_may_follow_options() -> None:
    parser = recipe_parser("about")
    parser.add_argument("--runs-dir")
    found = parser.parse_intermixed_args(["r.yaml", "a.b=1", "--runs-dir", "x", "c.d=2"])
    assert found.overrides == ["a.b=1", "c.d=2"]

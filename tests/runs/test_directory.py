"""A run directory is never overwritten, belongs to one process at a time, and is resumed only where that is exact."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nomoat.errors import NomoatError
from nomoat.io import read_json
from nomoat.runs.directory import RunDirectory, RunLock, open_run, resolve_run
from tests.private import find_private_strings, private_strings

IDENTITY = {"recipe": {"lora": {"rank": 8}}, "base": "ab" * 32}
ENVIRONMENT = {
    "packages": {"torch": "2.13.0", "peft": "0.21.2"},
    "device": {"kind": "cpu", "name": "some processor", "memory_bytes": 8_000_000_000},
    "threads": 2,
}
ASK = """
import sys, time
from pathlib import Path
from nomoat.errors import NomoatError
from nomoat.runs.directory import open_run
root, go = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
try:
    run = open_run(root, "smoke", identity={}, environment={"threads": 2})
    print("mine", run.path.name, flush=True)
    sys.stdin.readline()
except NomoatError as error:
    print("refused", error, flush=True)
"""


def begin(root: Path, *, identity: dict[str, Any] | None = None, **environment: Any) -> RunDirectory:
    return open_run(root, "smoke", identity=identity or IDENTITY, environment={**ENVIRONMENT, **environment})


def finish(run: RunDirectory) -> None:
    (run.path / "report.json").write_text("{}")
    run.close()


def ask(root: Path, go: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ASK, str(root), str(go)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def test_a_first_run_is_named_after_its_recipe_and_writes_its_environment(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        assert run.path.parent == tmp_path
        name, digest = run.run_id.rsplit("-", 1)
        assert name == "smoke" and len(digest) == 8 and int(digest, 16) >= 0
        assert (run.resumed, run.note) == (False, "")
        run.record(seed=3)
        facts = read_json(run.path / "environment.json")
        assert (facts["threads"], facts["seed"]) == (2, 3) and "created" in facts


def test_another_identity_is_another_directory(tmp_path: Path) -> None:
    with begin(tmp_path) as one, begin(tmp_path, identity={**IDENTITY, "base": "cd" * 32}) as other:
        assert one.path != other.path


def test_a_finished_run_is_left_alone_and_the_next_ones_are_numbered(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        run = begin(tmp_path)
        names.append(run.run_id)
        finish(run)
    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    assert not list(tmp_path.glob("*/run.lock"))


def test_an_unfinished_run_is_resumed(tmp_path: Path) -> None:
    with begin(tmp_path) as first:
        first.record(dtype="bfloat16")
    with begin(tmp_path) as again:
        assert again.path == first.path
        assert again.resumed and again.run_id in again.note
        assert read_json(again.path / "environment.json")["dtype"] == "bfloat16", "what was recorded is kept"


def test_a_machine_with_a_little_less_memory_is_the_same_machine(tmp_path: Path) -> None:
    begin(tmp_path).close()
    with begin(tmp_path, device={**ENVIRONMENT["device"], "memory_bytes": 7_999_000_000}) as again:
        assert again.resumed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 4}, "threads was 2, is 4"),
        ({"packages": {"torch": "2.14.0", "peft": "0.21.2"}}, "packages.torch was 2.13.0, is 2.14.0"),
        ({"packages": {"torch": "2.13.0"}}, "packages.peft was 0.21.2, is None"),
        ({"device": {"kind": "cuda", "name": "NVIDIA L4"}}, "device.kind was cpu, is cuda"),
    ],
)
def test_an_unfinished_run_of_another_environment_is_left_and_the_new_one_says_why(tmp_path: Path, change: Any, said: str) -> None:
    begin(tmp_path).close()
    before = (tmp_path / begin_name(tmp_path) / "environment.json").read_bytes()
    with begin(tmp_path, **change) as run:
        assert run.run_id == f"{begin_name(tmp_path)}-2"
        assert not run.resumed
        assert said in run.note and begin_name(tmp_path) in run.note
    assert (tmp_path / begin_name(tmp_path) / "environment.json").read_bytes() == before
    with begin(tmp_path, **change) as again:
        assert again.resumed and again.run_id == run.run_id


def begin_name(root: Path) -> str:
    return min((path.name for path in root.iterdir()), key=len)


def test_a_live_run_is_refused_and_its_process_named(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        with pytest.raises(NomoatError, match=rf"process {os.getpid()} on {socket.gethostname()}, since 20"):
            begin(tmp_path)
        with pytest.raises(NomoatError, match="in use"):
            RunLock.take(run.path)
    assert begin(tmp_path).resumed


def test_of_several_processes_that_start_together_one_gets_the_run(tmp_path: Path) -> None:
    go = tmp_path / "go"
    children = [ask(tmp_path / "runs", go) for _ in range(4)]
    go.touch()
    answers = [child.stdout.readline() for child in children if child.stdout]
    for child in children:
        child.communicate("\n")
    assert sorted(answer.split()[0] for answer in answers) == ["mine", "refused", "refused", "refused"], answers
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    child = ask(tmp_path / "runs", tmp_path / "go")
    assert child.stdout is not None
    name = child.stdout.readline().split()[1]
    with pytest.raises(NomoatError, match=f"process {child.pid} "):
        open_run(tmp_path / "runs", "smoke", identity={}, environment={"threads": 2})
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (tmp_path / "runs" / name / "run.lock").exists()
    with open_run(tmp_path / "runs", "smoke", identity={}, environment={"threads": 2}) as run:
        assert run.resumed and run.run_id == name


def test_a_released_lock_leaves_no_file_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        held = RunLock.take(tmp_path)
        with pytest.raises(NomoatError, match="in use"):
            RunLock.take(tmp_path)
        held.release()
        assert list(tmp_path.iterdir()) == []


def test_a_lock_held_on_another_host_is_respected(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.close()
    lock = run.path / "run.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 77, "since": "2026-03-10T08:00:00+00:00"}))
    with pytest.raises(NomoatError, match=r"process 77 on elsewhere.*remove .*run\.lock"):
        begin(tmp_path)
    lock.unlink()
    assert begin(tmp_path).resumed


def test_a_lock_file_torn_by_a_kill_does_not_block(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.close()
    (run.path / "run.lock").write_text('{"host": "els')
    assert begin(tmp_path).resumed


def test_an_error_on_the_way_in_gives_the_lock_back(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.close()
    (run.path / "environment.json").write_text("{torn")
    with pytest.raises(ValueError):
        begin(tmp_path)
    (run.path / "environment.json").unlink()
    assert not begin(tmp_path).resumed


def test_latest_is_the_finished_run_whose_report_is_newest(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match="no finished run below"):
        resolve_run(Path("latest"), tmp_path)
    for number, name in enumerate(("b", "a", "unfinished")):
        (tmp_path / name).mkdir()
        if name != "unfinished":
            (tmp_path / name / "report.json").write_text("{}")
            os.utime(tmp_path / name / "report.json", (number, number))
    assert resolve_run(Path("latest"), tmp_path) == tmp_path / "a"
    assert resolve_run(Path("runs/other"), tmp_path) == Path("runs/other"), "a stated run is taken as it is"


def test_private_strings_are_found_in_any_file_and_in_names(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/ada/.cache/x"}')
    (tmp_path / "weights.bin").write_bytes(b"\x00\xffhf_secretsecret\x00")
    (tmp_path / "of-ada-lovelace.txt").write_text("nothing")
    (tmp_path / "clean.json").write_text("{}")
    found = find_private_strings(tmp_path, ["/home/ada", "hf_secretsecret", "ada-lovelace"])
    assert found == ["adapter/adapter_config.json: /home/ada", "of-ada-lovelace.txt: ada-lovelace", "weights.bin: hf_secretsecret"]


def test_private_strings_are_paths_and_secrets_but_not_every_variable() -> None:
    environment = {
        "HF_HOME": "/data/hf",
        "HF_TOKEN": "hf_abcdefgh",
        "OPENAI_API_KEY": "sk-12345678",
        "LANG": "en_US.UTF-8",
        "SHORT_TOKEN": "1",
    }
    strings = private_strings(environment)
    assert {"/data/hf", "hf_abcdefgh", "sk-12345678", str(Path.home())} <= set(strings)
    assert "en_US.UTF-8" not in strings and "1" not in strings


def test_a_run_just_begun_holds_nothing_private(tmp_path: Path) -> None:
    run = begin(tmp_path)
    finish(run)
    assert list(run.path.iterdir())
    assert find_private_strings(run.path) == []

"""Pinning asks a hub (here one of ours, through the real client) and changes one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nomoat.config.pin import find_unpinned
from tests.stories import ROOT

MODEL, DATA = "a" * 39 + "1", "b" * 39 + "2"
KNOWN = {"/api/models/owl/owl-1b": MODEL, "/api/datasets/owl/calls": DATA}
RECIPE = """\
# A recipe.   revision: unpinned
base:
  hub: owl/owl-1b      # an owl
  revision: unpinned   # looked up by make pin
data: {hub: owl/calls, revision: "unpinned", columns: {prompt: q, completion: a}}  # calls
train: {epochs: 2}
"""


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks of a repository, and nothing else."""

    def do_GET(self) -> None:
        commit = KNOWN.get(self.path.partition("?")[0])
        body = json.dumps({"id": "owl", "sha": commit} if commit else {"error": "Repository not found"}).encode()
        self.send_response(200 if commit else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def pin(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train" / "pin.py"), str(path)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def test_only_the_revisions_change(tmp_path: Path, hub: str) -> None:
    path = tmp_path / "owl.yaml"
    path.write_text(RECIPE)
    done = pin(path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    expected = RECIPE.replace("  revision: unpinned ", f"  revision: {MODEL} ").replace('"unpinned"', DATA)
    assert path.read_text() == expected and MODEL in done.stdout and DATA in done.stdout
    again = pin(path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert again.returncode == 0 and "nothing to pin" in again.stdout and path.read_text() == expected


def test_a_hub_that_does_not_know_it_or_cannot_be_reached_leaves_the_file_as_it_is(tmp_path: Path, hub: str) -> None:
    path = tmp_path / "owl.yaml"
    for text, environment in (
        (RECIPE.replace("owl/calls", "owl/none"), {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}),
        (RECIPE, {"HF_HUB_OFFLINE": "1"}),
    ):
        path.write_text(text)
        done = pin(path, **environment)
        assert done.returncode == 2 and "could not be looked up" in done.stderr and "Traceback" not in done.stderr
        assert path.read_text() == text


def test_other_mistakes_of_a_recipe_are_reported_first(tmp_path: Path) -> None:
    path = tmp_path / "owl.yaml"
    path.write_text(RECIPE.replace("epochs", "epoch"))
    done = pin(path)
    assert done.returncode == 2 and "did you mean train.epochs?" in done.stderr


def test_a_pinned_revision_and_other_words_are_left_alone() -> None:
    assert find_unpinned(RECIPE.replace("unpinned", MODEL)) == []
    assert find_unpinned("base: {path: unpinned}\ntrain: {revision: unpinned, hub: a/b}\n") == []

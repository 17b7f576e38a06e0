"""Bases and adapters of the hub, by the real client from a local hub: fetched whole, or refused with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nomoat.config.schema import Lora
from nomoat.models.adapter import attach_adapter, save_adapter
from nomoat.models.base import load_model
from nomoat.reports.build import read_report
from tests.local_hub import COMMIT, GATED, serve
from tests.stories import RECIPE, only_run, run
from tests.tiny import make_base, write_user_rows

FETCH = """
import json, sys
from nomoat.models.base import fetch_base
from nomoat.errors import NomoatError
from nomoat.config.schema import Base
for line in sys.stdin:
    try:
        print("fetched", fetch_base(Base.model_validate_json(line)).identity["download_bytes"])
    except NomoatError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("hub")
    for name in ("good", "gated", "pickled", "own-code", "unheard-of", "encoder"):
        make_base(root / "owl" / name)
    (root / "owl" / "gated" / GATED).touch()
    (root / "owl" / "pickled" / "model.safetensors").rename(root / "owl" / "pickled" / "pytorch_model.bin")
    own_code = {"model_type": "owl", "auto_map": {"AutoModelForCausalLM": "modeling_owl.OwlForCausalLM"}}
    for name, change in (("own-code", own_code), ("unheard-of", {"model_type": "owl"}), ("encoder", {"model_type": "t5"})):
        path = root / "owl" / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    files = make_base(root / "owl" / "good")
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), Lora(rank=4), seed=0, files=files)
    for name in ("lora", "pickled-lora"):
        save_adapter(model, root / "owl" / name, files)
    (root / "owl" / "pickled-lora" / "adapter_model.safetensors").rename(root / "owl" / "pickled-lora" / "adapter_model.bin")
    with serve(root) as endpoint:
        yield endpoint


def online(hub: str, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf")}


def test_a_base_that_cannot_be_fetched_or_used_is_refused_in_one_line(hub: str, tmp_path: Path) -> None:
    cases = {
        "good": "fetched",
        "none": "could not be fetched",
        "gated": "for a gated model, your login",
        "pickled": "has no safetensors file; other formats are not loaded",
        "own-code": "needs remote code (modeling_owl.OwlForCausalLM), which nomoat never runs",
        "unheard-of": "architecture 'owl', which transformers",
        "encoder": "architecture 't5' is not a causal language model",
    }
    bases = [{"hub": f"owl/{name}", "revision": COMMIT} for name in cases] + [{"hub": "owl/good", "revision": "d" * 40}]
    environment = {**os.environ, **online(hub, tmp_path)}
    asked = "".join(json.dumps(base) + "\n" for base in bases)
    done = subprocess.run([sys.executable, "-c", FETCH], input=asked, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(bases)
    for line, expected in zip(said, [*cases.values(), "dddddddddddd could not be fetched"], strict=True):
        assert expected in line, line


def test_a_base_of_the_hub_goes_from_recipe_to_report(hub: str, tmp_path: Path) -> None:
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("path: ./model", f"hub: owl/good, revision: {COMMIT}"))
    done = run(tmp_path, "train/sft.py", "tiny.yaml", **online(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    run_dir = only_run(tmp_path)
    base = read_report(run_dir / "report.json").provenance.base
    assert (base.name, base.revision) == ("owl/good", COMMIT)
    config = json.loads((run_dir / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owl/good", COMMIT)


def test_an_adapter_of_the_hub_is_fetched_as_plain_tensors_or_refused(hub: str, tmp_path: Path) -> None:
    script = "import sys\nfrom nomoat.models.external_adapter import fetch_adapter\nfrom nomoat.errors import NomoatError\n"
    script += "for name in sys.argv[1:]:\n    try: print(sorted(p.name for p in fetch_adapter(name).iterdir()))\n"
    script += "    except NomoatError as error: print(error)\n"
    names = [f"owl/{name}@{COMMIT}" for name in ("lora", "pickled-lora", "none")]
    environment = {**os.environ, **online(hub, tmp_path)}
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    fetched, pickled, unknown = done.stdout.splitlines()
    assert fetched == "['adapter_config.json', 'adapter_model.safetensors']"
    assert "safetensors" in pickled and "could not be fetched" in unknown


def test_an_unpinned_base_is_not_trained(tmp_path: Path) -> None:
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("path: ./model", "hub: owl/good, revision: unpinned"))
    done = run(tmp_path, "train/sft.py", "tiny.yaml")
    assert done.returncode == 2 and "make pin RECIPE=" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()

"""What a plan says and refuses, as functions and as a user sees it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nomoat.config.load import load_recipe
from nomoat.errors import NomoatError
from nomoat.models.base import BaseFiles
from nomoat.models.device import Device
from nomoat.planning.measure import Measurement
from nomoat.planning.memory import ModelSpec
from nomoat.planning.plan import Plan, check_fit, published_speed, time_and_money
from tests.local_hub import serve
from tests.planning.test_memory import make_tiny_plan
from tests.stories import RECIPE, ROOT, make_workplace, run
from tests.tiny import make_base, write_user_rows


@pytest.mark.parametrize(
    ("changes", "phase", "part", "knob"),
    [
        ((), "training", "activations", "train.pack_tokens"),
        ((), "adapter checks", "heap", "train.pack_tokens"),
        ((), "training", "weights", "precision=nf4"),
        (("precision=nf4",), "training", "weights", "smaller base"),
        ((), "training", "optimiser", "lora.rank"),
        (("lora.method=full",), "training", "gradients", "lora.method=lora"),
        ((), "scoring", "cache", "eval.batch_rows"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_change(
    tmp_path: Path, changes: tuple[str, ...], phase: str, part: str, knob: str
) -> None:
    plan = make_tiny_plan(tmp_path, *changes)
    check_fit(plan)
    with pytest.raises(NomoatError, match=knob) as refused:
        check_fit(replace(plan, phases={"loading": Counter({"weights": 5}), phase: Counter({part: 10**15})}))
    assert phase in str(refused.value) and "\n" not in str(refused.value)


def test_time_and_money_are_shown_only_where_speed_and_rate_are_known(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path)
    assert [line[1] for line in time_and_money(plan)] == ["not known", "no figure"]
    fast = replace(plan, measured=Measurement(phases={}, tokens_per_second=plan.work.tokens / 1800))
    time, money = time_and_money(fast)
    assert time[1] == "30 min 00 s of training" and "measured here" in time[2]
    assert money[1] == "no figure" and "no rate is known" in money[2]

    def at_rate(**rate: Any) -> Plan:
        hardware = plan.spec.recipe.hardware.model_validate({"rate": rate})
        return replace(fast, spec=replace(fast.spec, recipe=fast.spec.recipe.model_copy(update={"hardware": hardware})))

    rented = time_and_money(at_rate(usd_per_hour=0.6, source="a test", date="2026-03-10"))[1]
    assert rented[1:] == ("$0.3000", "0.6 USD/h, a test, 2026-03-10")
    assert time_and_money(at_rate(watts=100.0, usd_per_kwh=0.2))[1][1] == "$0.0100 of electricity"


def test_the_speed_is_a_published_runs_only_on_the_same_base_device_and_precision() -> None:
    folder = ROOT / "recipes" / "reference"
    report = json.loads((folder / "smollm2-135m.json").read_text())
    seen, place = report["provenance"], report["provenance"]["device"]
    spec = ModelSpec(
        recipe=load_recipe(ROOT / "recipes" / "smollm2-135m.yaml", []),
        config=None,
        device=Device(place["kind"], place["name"], place["memory_bytes"], seen["threads"]),
        precision=seen["dtype"],
        scoring_precision="float32",
        files=BaseFiles(Path(), seen["base"]["name"], {}),
        fetch_seconds=0.0,
    )
    speed, source = published_speed(spec, folder)
    assert speed == report["cost"]["tokens_per_second"] and report["run"] in source
    others: list[dict[str, Any]] = [
        {"device": replace(spec.device, name="another")},
        {"device": replace(spec.device, threads=99)},
        {"precision": "nf4"},
        {"files": replace(spec.files, name="another")},
    ]
    for other in others:
        assert published_speed(replace(spec, **other), folder)[0] is None


def is_one_line(stderr: str) -> bool:
    return stderr.startswith("error: ") and stderr.count("\n") == 1


def test_a_plan_says_what_is_trained_and_what_each_phase_needs(tmp_path: Path) -> None:
    make_workplace(tmp_path)
    done = run(tmp_path, "train/plan.py", "tiny.yaml", "lora.rank=4", "precision=float32")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for words in ("lora rank 4", "on disk", "rows packed, varlen attention", "loading", "training", "adapter checks", "scoring", "needs"):
        assert words in said, words
    assert "estimated measured" not in said


def test_a_base_too_large_for_this_machine_is_refused_from_its_configuration_alone(tmp_path: Path) -> None:
    make_workplace(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    large = {**config, "num_hidden_layers": 8, "intermediate_size": 2**30, "layer_types": None}
    (tmp_path / "model" / "config.json").write_text(json.dumps(large))
    (tmp_path / "model" / "model.safetensors").unlink()
    done = run(tmp_path, "train/plan.py", "tiny.yaml", "precision=bfloat16")
    assert done.returncode == 2 and is_one_line(done.stderr), done.stderr
    assert "lower train.pack_tokens" in done.stderr and "weights" in done.stdout


def test_an_unpinned_base_is_planned_from_its_configuration_and_refused_without_a_hub(tmp_path: Path) -> None:
    make_base(tmp_path / "hub" / "owl" / "good")
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("path: ./model", "hub: owl/good, revision: unpinned"))
    none = run(tmp_path, "train/plan.py", "tiny.yaml", HF_HOME=str(tmp_path / "hf"))
    assert none.returncode == 2 and is_one_line(none.stderr) and "owl/good at main could not be fetched" in none.stderr
    with serve(tmp_path / "hub") as endpoint:
        online = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        done = run(tmp_path, "train/plan.py", "tiny.yaml", **online)
    assert done.returncode == 0, done.stderr
    assert "unpinned: this is the plan for branch main of owl/good" in " ".join(done.stdout.split())
    assert list((tmp_path / "hf").rglob("config.json")) and not list((tmp_path / "hf").rglob("*.safetensors"))


def test_terms_that_nobody_accepted_stop_a_plan_that_would_download_the_base(tmp_path: Path) -> None:
    done = run(tmp_path, "train/plan.py", str(ROOT / "recipes" / "gemma-3-270m.yaml"))
    assert done.returncode == 2 and is_one_line(done.stderr) and "base.accept_license" in done.stderr


def test_targets_that_the_base_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match=r"lora\.targets"):
        make_tiny_plan(tmp_path, "lora.targets=[q_proj,k_prooj]")

"""A plan against what it plans: parameters, files, memory of real steps on real tiny models, and everything it must refuse."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nomoat.config.load import load_recipe
from nomoat.config.schema import Lora, Recipe
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.examples import Example
from nomoat.errors import NomoatError
from nomoat.evaluation.prefill import Request, enable_packed_prefill
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.adapter import adapter_size, adapter_tensors, attach_adapter, save_adapter, weights_of
from nomoat.models.base import BaseFiles, fetch_base, load_model, load_tokenizer
from nomoat.models.device import Device
from nomoat.planning.measure import AllocationRecord
from nomoat.planning.memory import (
    Counts,
    MemorySetting,
    Timeline,
    _largest_step,
    by_part,
    count_parameters,
    largest_microbatch,
    scoring_memory,
)
from nomoat.planning.plan import CostPlan, check_fit, make_plan, published_speed, with_speed
from nomoat.planning.workload import _largest_batches, answers_pack, packing_of
from nomoat.training.collate import Collator, choose_packing, summed_loss
from tests.local_hub import serve
from tests.stories import RECIPE, ROOT, make_workplace, run
from tests.tiny import SIZES, make_base, make_rows, write_user_rows

TOLERANCE = 0.025  # of what a real step holds; some kernels (dropout in bfloat16) take a little for themselves
METHODS = ["lora", "dora", "pissa", "full"]


def make_recipe(folder: Path, *changes: str, architecture: str = "llama") -> Recipe:
    """A tiny recipe on a tiny base, both written below `folder`."""
    make_base(folder / "model", architecture)
    write_user_rows(folder / "rows.jsonl", 60)
    (folder / "tiny.yaml").write_text(RECIPE.replace("./model", str(folder / "model")).replace("rows.jsonl", str(folder / "rows.jsonl")))
    return load_recipe(folder / "tiny.yaml", list(changes))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_counts_and_file_size_are_those_of_a_really_attached_adapter(tmp_path: Path, architecture: str, method: str) -> None:
    from transformers import AutoConfig

    files = make_base(tmp_path / "model", architecture)
    lora = Lora(method=method, rank=4)  # type: ignore[arg-type]  # parametrised
    planned = count_parameters(AutoConfig.from_pretrained(files.folder), lora, files)
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), lora, seed=0, files=files)
    size = adapter_size(model)
    start = adapter_tensors(model) if method == "pissa" else None
    save_adapter(model, tmp_path / "saved", files, start=start)
    assert (planned.trainable, planned.base_parameters) == (size.parameters, size.base_parameters)
    written = weights_of(tmp_path / "saved").stat().st_size
    assert planned.saved_bytes == pytest.approx(written, abs=256)  # names and offsets in the header


@pytest.mark.parametrize("architecture", sorted(SIZES))
def test_what_only_the_architecture_decides_is_seen_without_its_weights(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig

    files = make_base(tmp_path, architecture)
    conversation = ChatTemplate(load_tokenizer(files))
    rows = [conversation.render(row) for row in make_rows(3)]
    questions = [Request(row.row_id, row.prompt_ids, row.completion_ids) for row in rows[:2]]
    config = AutoConfig.from_pretrained(files.folder)
    model, other = (load_model(files, precision="float32", device="cpu") for _ in range(2))
    packed, _ = choose_packing(model, rows, "cpu")
    assert packing_of(config, rows, "cpu") == (packed, packed and uses_varlen_attention(model))
    assert answers_pack(config, questions, "cpu") == enable_packed_prefill(other, questions)


def real_step(plan: CostPlan) -> Counter[str]:
    """Bytes by part that torch's allocator handed out at the peak of a real step on the fullest batch."""
    recipe, work = plan.recipe, plan.work
    files = fetch_base(recipe.base)
    model = load_model(files, precision=plan.setting.kept_precision, device="cpu")
    packed, _ = choose_packing(model, work.train, "cpu")
    assert (packed, packed and uses_varlen_attention(model)) == (work.packed, work.row_attention)
    model = attach_adapter(model, recipe.lora, seed=0, files=files).train()
    rows = Collator(work.train, (), packed, work.pad_id, recipe.train.pack_tokens, packed and uses_varlen_attention(model))
    pack = [work.train[number] for number in largest_microbatch(work)[0]]
    summed_loss(model, rows.batch(pack)).backward()  # libraries set something aside when they are first used
    model.zero_grad()
    record = AllocationRecord(model, "cpu")
    record.start()
    summed_loss(model, rows.batch(pack)).backward()
    record.note_gradients()
    record.stop()
    return by_part(record.timeline().at_peak())


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", ()),
        ("llama", ("precision=nf4",)),
        ("llama", ("precision=int8",)),
        ("llama", ("lora.method=dora",)),
        ("llama", ("lora.dropout=0.1", "precision=bfloat16")),
        ("gemma3_text", ()),
        ("gpt2", ()),
        ("bloom", ()),  # padded: packed rows would mix
    ],
)
def test_the_trace_holds_what_a_real_step_holds(tmp_path: Path, architecture: str, changes: tuple[str, ...]) -> None:
    settings = ("precision=float32", *changes, "train.batch_tokens=256")  # one pass a step
    plan = make_plan(make_recipe(tmp_path, *settings, architecture=architecture), ROOT)
    assert plan.work.packed == (architecture != "bloom")
    planned, held = plan.phases["training"], real_step(plan)
    near = TOLERANCE * sum(held.values())
    assert planned["logits"] == pytest.approx(held["logits"], abs=near)
    assert planned["activations"] == pytest.approx(held["activations"] + held["backward"], abs=near)


def test_a_model_trained_in_full_holds_gradients_and_states_of_every_parameter(tmp_path: Path) -> None:
    plan = make_plan(make_recipe(tmp_path, "lora.method=full", "train.batch_tokens=256", "precision=float32"), ROOT)
    planned, held = plan.phases["training"], real_step(plan)
    total = 4 * plan.setting.counts.base_parameters
    assert planned["weights"] == pytest.approx(total, rel=0.001) and planned["adapter"] == 0  # and buffers
    assert planned["optimiser"] == pytest.approx(2 * total + held["gradients"], rel=TOLERANCE)
    assert sum(planned.values()) >= 4 * total


def test_a_few_layers_tell_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "llama", {**SIZES["llama"], "num_hidden_layers": 7})
    plan = make_plan(make_recipe(tmp_path, "precision=float32"), ROOT)
    whole = _largest_step(plan.setting, plan.work)
    assert plan.phases["training"]["activations"] == whole["activations"] + whole["backward"]
    assert plan.phases["training"]["logits"] == whole["logits"]


def test_scoring_is_planned_for_the_batch_that_needs_most(tmp_path: Path) -> None:
    plan = make_plan(make_recipe(tmp_path, "precision=float32"), ROOT)
    asked, told = Request("asked", (5, 6, 7) * 60, (1,)), Request("told", (5,), (6, 7) * 70 + (1,))
    long, wordy, both = (
        scoring_memory(plan.setting, replace(plan.work, batches=batches)) for batches in (((asked,),), ((told,),), ((asked,), (told,)))
    )
    assert both == max(long, wordy, key=Counter.total) and long != wordy


def test_batches_with_most_tokens_and_with_most_logits_are_both_looked_at(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, "eval.batch_rows=2", "eval.arms=[base,adapter]")
    conversation = ChatTemplate(load_tokenizer(fetch_base(recipe.base)))
    texts = [("what is it? " * 20, "no"), ("why? " * 6, "because it is so " * 4), ("who? ", "me")]
    rows = [
        Example(f"{n}-{m}", prompt, answer, None, "talk", "values", f"g{n}", {"by": "exact"})
        for n, (prompt, answer) in enumerate(texts)
        for m in range(2)
    ]
    batches = _largest_batches(recipe, tuple(rows), {}, conversation)
    assert [[question.key[0] for question in batch] for batch in batches] == [["0", "0"], ["1", "1"]]
    alike = _largest_batches(recipe, tuple(rows[2:]), {}, conversation)
    assert [[question.key[0] for question in batch] for batch in alike] == [["1", "1"]]  # one that is both


def test_blocks_are_counted_at_the_peak_under_the_part_they_turn_out_to_be() -> None:
    timeline = Timeline()
    timeline.born(1, 10, "activations")
    timeline.born(2, 20, "backward")
    timeline.born(3, 5, "backward")
    timeline.rename([3], "gradients")
    timeline.gone(2)
    timeline.gone(99)
    timeline.born(2, 1, "activations")  # the address is used again
    assert by_part(timeline.at_peak()) == {"activations": 10, "backward": 20, "gradients": 5}


@pytest.mark.parametrize(
    ("changes", "phase", "part", "knob"),
    [
        ((), "training", "activations", "train.pack_tokens"),
        ((), "training", "weights", "precision=nf4"),
        (("precision=nf4",), "training", "weights", "smaller base"),
        ((), "training", "optimiser", "lora.rank"),
        (("lora.method=full",), "training", "optimiser", "lora.method=lora"),
        ((), "scoring", "cache", "eval.batch_rows"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_change(
    tmp_path: Path, changes: tuple[str, ...], phase: str, part: str, knob: str
) -> None:
    plan = make_plan(make_recipe(tmp_path, *changes), ROOT)
    check_fit(plan)
    huge: dict[str, Any] = {phase: Counter({part: 10**15, "file pages": 10**18}), "loading": Counter({"weights": 5})}
    with pytest.raises(NomoatError, match=knob) as refused:
        check_fit(replace(plan, phases=huge))
    assert phase in str(refused.value) and "\n" not in str(refused.value)
    check_fit(replace(plan, phases={phase: Counter({"file pages": 10**15})}))  # the system takes them back


def plan_script(folder: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "train/plan.py", *words, **extra)


def is_one_line(stderr: str) -> bool:
    return stderr.startswith("error: ") and stderr.count("\n") == 1


def test_a_base_too_large_for_this_machine_is_refused_from_its_configuration_alone(tmp_path: Path) -> None:
    make_workplace(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    large = {**config, "num_hidden_layers": 8, "intermediate_size": 2**30, "layer_types": None}
    (tmp_path / "model" / "config.json").write_text(json.dumps(large))
    (tmp_path / "model" / "model.safetensors").unlink()
    done = plan_script(tmp_path, "tiny.yaml", "precision=bfloat16")
    assert done.returncode == 2 and is_one_line(done.stderr), done.stderr
    assert "lower train.pack_tokens" in done.stderr and "weights" in done.stdout


def test_an_unpinned_base_is_planned_from_its_configuration_and_refused_without_a_hub(tmp_path: Path) -> None:
    make_base(tmp_path / "hub" / "owl" / "good")
    write_user_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("path: ./model", "hub: owl/good, revision: unpinned"))
    none = plan_script(tmp_path, "tiny.yaml", HF_HOME=str(tmp_path / "hf"))
    assert none.returncode == 2 and is_one_line(none.stderr) and "owl/good at main could not be fetched" in none.stderr
    with serve(tmp_path / "hub") as endpoint:
        online = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        done = plan_script(tmp_path, "tiny.yaml", **online)
    assert done.returncode == 0, done.stderr
    assert "unpinned: planned with what branch main of owl/good" in " ".join(done.stdout.split())
    assert list((tmp_path / "hf").rglob("config.json")) and not list((tmp_path / "hf").rglob("*.safetensors"))


def test_terms_that_nobody_accepted_stop_a_plan_that_would_download_the_base(tmp_path: Path) -> None:
    done = plan_script(tmp_path, str(ROOT / "recipes" / "gemma-3-270m.yaml"))
    assert done.returncode == 2 and is_one_line(done.stderr) and "base.accept_license" in done.stderr


def test_without_a_tokenizer_tokens_are_estimated_and_that_is_said(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    whole = make_plan(recipe, ROOT)
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    plan = make_plan(recipe, ROOT)
    assert any("tokens are estimated" in note for note in plan.notes) and not any("estimated" in note for note in whole.notes)
    assert len(plan.work.train) == len(whole.work.train) and plan.work.tokens > 0


def test_time_and_money_are_told_only_where_speed_and_rate_are_known(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    plan = make_plan(recipe, ROOT)
    assert plan.speed is None and plan.train_seconds is None and plan.money().startswith("no figure: the time is not known")
    fast = with_speed(plan, plan.work.tokens / 1800)
    assert fast.train_seconds == pytest.approx(1800)
    assert with_speed(plan, 1.0).money().startswith("no figure: no rate is known")
    hardware = recipe.hardware.model_validate({"rate": {"usd_per_hour": 0.6, "source": "a test", "date": "2026-03-10"}})
    priced = replace(fast, setting=replace(fast.setting, recipe=recipe.model_copy(update={"hardware": hardware})))
    assert priced.money().startswith("$0.3000: 0.6 USD/h, a test")


def test_the_speed_is_a_published_runs_only_on_the_same_base_device_and_precision() -> None:
    report = json.loads((ROOT / "recipes" / "reference" / "smollm2-135m.json").read_text())
    place = report["provenance"]["device"]
    recipe = load_recipe(ROOT / "recipes" / "smollm2-135m.yaml", [])
    device = Device(place["kind"], place["name"], place["memory_bytes"], report["provenance"]["threads"])
    files = BaseFiles(Path(), report["provenance"]["base"]["name"], {})
    counts = Counts(1, 1, 1)
    setting = MemorySetting(None, counts, recipe, files, place["kind"], report["provenance"]["dtype"], "float32")
    found = published_speed(setting, device, ROOT / "recipes" / "reference")
    assert found is not None and found.tokens_per_second == report["cost"]["tokens_per_second"] and report["run"] in found.source
    for other in (replace(device, name="another"), replace(device, threads=99)):
        assert published_speed(setting, other, ROOT / "recipes" / "reference") is None
    for change in ({"precision": "nf4"}, {"files": replace(files, name="another")}):
        assert published_speed(replace(setting, **change), device, ROOT / "recipes" / "reference") is None


def test_measuring_shows_both_and_a_speed(tmp_path: Path) -> None:
    make_workplace(tmp_path)
    done = plan_script(tmp_path, "tiny.yaml", "--measure", "lora.rank=4")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for words in ("estimated measured ratio", "tokens a second, as measured here", "no rate is known"):
        assert words in said, words
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_plan_of_the_default_recipe_is_as_measured() -> None:
    from nomoat.planning.measure import measure

    recipe = load_recipe(ROOT / "recipes" / "smollm2-135m.yaml", ["precision=float32"])
    plan = make_plan(recipe, ROOT)
    measured = measure(plan)
    for phase in ("loading", "training"):
        assert sum(plan.phases[phase].values()) == pytest.approx(sum(measured.phases[phase].values()), rel=0.15), phase
    seen, planned = measured.phases["training"], plan.phases["training"]
    for part in ("weights", "adapter", "optimiser", "activations", "logits"):
        assert planned[part] == pytest.approx(seen[part], rel=0.25), part
    assert os.environ.get("HF_HUB_OFFLINE") == "1" and measured.tokens_per_second > 0

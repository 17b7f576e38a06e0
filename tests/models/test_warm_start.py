"""An adapter trained on top of another begins with its weights, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nomoat.config.load import load_recipe
from nomoat.config.schema import Lora
from nomoat.errors import NomoatError
from nomoat.io import read_json, write_json
from nomoat.models.adapter import CONFIG, attach_adapter, init_from_adapter, save_adapter, warm_start_folder
from nomoat.models.base import load_model
from nomoat.reports.build import read_report
from tests.stories import adapter_sha, make_workplace, only_run, run
from tests.tiny import make_base


def test_a_run_goes_on_from_another_runs_adapter(tmp_path: Path) -> None:
    folder = make_workplace(tmp_path)
    done = run(folder, "train/sft.py", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    first = only_run(folder)
    done = run(folder, "train/sft.py", "tiny.yaml", f"lora.start=runs/{first.name}", "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    (second,) = [path for path in (folder / "runs").iterdir() if path != first]
    report = read_report(second / "report.json")
    assert report.provenance["start_sha256"] == adapter_sha(first)
    assert report.recipe["lora"]["start"] == f"runs/{first.name}"
    curves = [read_report(path / "report.json").learning_curve.validation for path in (first, second)]
    assert curves[1][0][1] == pytest.approx(curves[0][-1][1], rel=1e-6), "it begins where the first one ended"


def test_what_cannot_be_gone_on_with_is_refused(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    lora = Lora(rank=4, start=str(tmp_path / "adapter"))
    with pytest.raises(NomoatError, match="neither a finished run nor an adapter's folder"):
        warm_start_folder(lora, files)
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), lora, seed=0, files=files)
    save_adapter(model, tmp_path / "adapter", files)
    assert warm_start_folder(lora, files) == tmp_path / "adapter" and warm_start_folder(Lora(), files) is None
    for other, said in (
        (lora.model_copy(update={"rank": 8}), "rank 4 there and 8 here"),
        (lora.model_copy(update={"alpha": 8.0}), "alpha 32"),
        (lora.model_copy(update={"method": "dora"}), "method lora there and dora here"),
        (lora.model_copy(update={"method": "full"}), "was trained as an adapter; seen: lora.method full"),
    ):
        with pytest.raises(NomoatError, match=said):
            warm_start_folder(other, files)
    config = read_json(tmp_path / "adapter" / CONFIG)
    write_json(tmp_path / "adapter" / CONFIG, {**config, "base_model_name_or_path": "another"})
    with pytest.raises(NomoatError, match="base another there and base here"):
        warm_start_folder(lora, files)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    narrow = Lora(rank=4, targets=("q_proj",))
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), narrow, seed=0, files=files)
    save_adapter(model, tmp_path / "adapter", files)
    wide = attach_adapter(load_model(files, precision="float32", device="cpu"), Lora(rank=4), seed=0, files=files)
    with pytest.raises(NomoatError, match="places stay empty"):
        init_from_adapter(wide, tmp_path / "adapter")


def test_a_path_on_the_command_line_is_taken_from_where_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_workplace(tmp_path / "recipes")
    shutil.copy(folder / "rows.jsonl", tmp_path / "mine.jsonl")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("recipes/tiny.yaml"), ["data.rows=mine.jsonl", "lora.start=runs/a"])
    recorded = recipe.as_dict()
    assert (recorded["base"]["path"], recorded["data"]["rows"], recorded["lora"]["start"]) == ("recipes/model", "mine.jsonl", "runs/a")

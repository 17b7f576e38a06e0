"""lm-evaluation-harness on base and adapter: its own code on tasks defined here over local files, and what the report makes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nomoat.config.schema import Eval
from nomoat.errors import NomoatError
from nomoat.evaluation.lm_eval import load_tasks, paired_lines
from nomoat.io import read_json, read_jsonl
from nomoat.reports.build import read_report, verify_files, write_report
from nomoat.reports.metrics import benchmark_scores
from nomoat.stats.intervals import score_interval
from nomoat.stats.paired import paired_difference
from tests.stories import make_workplace, only_run, run

CHOICE = """\
task: town_of_country
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "which town lies in {{{{country}}}}?"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.5}}
"""
WRITTEN = """\
task: sum_of_two
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "add {{{{a}}}} to {{{{b}}}}"
doc_to_target: "{{{{sum}}}}"
generation_kwargs: {{until: ["<|end|>"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def make_tasks(folder: Path, count: int = 24) -> None:
    """Two tasks in the harness's format, a choice and a written answer, each with its own file."""
    towns = [{"country": f"country {n}", "choices": [f"town {n}", f"town {n + 1}"], "label": n % 2} for n in range(count)]
    sums = [{"a": n, "b": 7 * n, "sum": str(8 * n)} for n in range(count)]
    for name, task, rows in (("towns", CHOICE, towns), ("sums", WRITTEN, sums)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(task.format(file=file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose recipe names both tasks."""
    pytest.importorskip("lm_eval")
    folder = make_workplace(tmp_path_factory.mktemp("harness"))
    make_tasks(folder)
    done = run(folder, "train/sft.py", "tiny.yaml", "eval.harness=[towns.yaml, sums.yaml]", HF_DATASETS_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "town_of_country acc" in done.stdout and "sum_of_two exact_match" in done.stdout
    return only_run(folder)


def test_both_arms_are_asked_the_same_documents_and_every_figure_follows_from_the_pairs(finished: Path) -> None:
    report = read_report(finished / "report.json")
    verify_files(report, finished)
    assert report.harness is not None and report.cost.seconds_by_phase["harness"] > 0
    lines = list(read_jsonl(finished / "eval" / "harness.jsonl"))
    for score in report.harness.scores:
        pairs = [(line["base"], line["adapter"]) for line in lines if line["task"] == score.task]
        assert score.n == len(pairs) == len({line["document"] for line in lines if line["task"] == score.task}) == 24
        assert score.base == pytest.approx(sum(base for base, _ in pairs) / 24)
        assert score.adapter == pytest.approx(sum(adapter for _, adapter in pairs) / 24)
        assert score.base_interval == pytest.approx(score_interval([base for base, _ in pairs], range(24)))
    assert [score.task for score in report.harness.scores] == ["sum_of_two", "town_of_country"]
    facts = report.harness.tasks["town_of_country"]
    assert facts["version"] == 2.5 and len(facts["sha256"]) == 64 and report.harness.chat_template
    page = (finished / "report.html").read_text()
    assert "Standard benchmarks" in page and "lm-evaluation-harness" in page and "24 documents" in page


def test_an_adapter_answers_otherwise_than_its_base(finished: Path) -> None:
    """A learnt sum: were the adapter not at work inside the harness, both columns would be the same."""
    lines = [line for line in read_jsonl(finished / "eval" / "harness.jsonl")]
    samples = {arm: [line[arm] for line in lines] for arm in ("base", "adapter")}
    assert samples["base"] != samples["adapter"]


def test_an_edited_pair_is_noticed(finished: Path, tmp_path: Path) -> None:
    report = read_report(finished / "report.json")
    assert report.harness is not None
    scores = [report.harness.scores[0].model_copy(update={"adapter": 0.99}), *report.harness.scores[1:]]
    forged = report.model_copy(update={"harness": report.harness.model_copy(update={"scores": scores})})
    write_report(forged, tmp_path / "report.json")
    with pytest.raises(NomoatError, match=r"harness\.scores\[0\]\.adapter"):
        verify_files(read_report(tmp_path / "report.json"), finished)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["arc_esy"], "did you mean arc_easy"),
        (["nowhere.yaml"], "there is no file nowhere.yaml"),
        (["humaneval"], "cannot be loaded"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_refused_before_anything_begins(
    wanted: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NomoatError, match=said):
        load_tasks(Eval(harness=tuple(wanted)))


def test_without_the_package_the_recipe_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(NomoatError, match="make harness"):
        load_tasks(Eval(harness=("arc_easy",)))
    assert load_tasks(Eval()) is None


def results(accuracy: list[float], perplexity: float) -> dict[str, Any]:
    """Harness results of one arm, its samples out of order and once more under a second filter."""
    samples = [
        {"doc_id": n, "doc_hash": f"d{n}", "filter": name, "acc": value, "ppl": (1.0, 2.0)}
        for name, sign in (("strict", 1), ("none", 0))
        for n, value in reversed(list(enumerate([sign * value for value in accuracy])))
    ]
    totals = {"acc,strict": sum(accuracy) / len(accuracy), "acc,none": 0.0, "acc_stderr,none": 0.1, "ppl,none": perplexity, "alias": "t"}
    return {"results": {"t": totals}, "samples": {"t": samples}}


def test_pairs_are_of_one_document_and_filter_and_a_total_that_is_no_mean_is_kept_as_it_is() -> None:
    lines = list(paired_lines(results([1.0, 0.0, 1.0], 31.0), results([0.0, 0.0, 1.0], 29.0)))
    strict = [line for line in lines if line["filter"] == "strict"]
    assert [(line["document"], line["base"], line["adapter"]) for line in strict] == [("d0", 1.0, 0.0), ("d1", 0.0, 0.0), ("d2", 1.0, 1.0)]
    assert [line["base"] for line in lines if (line["filter"], line["metric"]) == ("none", "acc")] == [0.0, 0.0, 0.0]
    assert [line for line in lines if line["metric"] == "ppl"] == [
        {"task": "t", "metric": "ppl", "filter": "none", "document": None, "base": 31.0, "adapter": 29.0}
    ]
    assert len(lines) == 7


def line(document: str | None, base: float, adapter: float, metric: str = "acc") -> dict[str, Any]:
    return {"task": "t", "metric": metric, "filter": "none", "document": document, "base": base, "adapter": adapter}


def test_a_metric_for_which_less_is_better_is_judged_so() -> None:
    lines = [line(str(n), 1.0, float(n < 4)) for n in range(40)]
    (up,), (down,), (unknown,) = (benchmark_scores(lines, {"t": {"higher_is_better": {"acc": way}}}) for way in (True, False, None))
    assert (up.verdict, down.verdict, unknown.verdict) == ("worse", "better", "cannot tell")
    expected = paired_difference([float(n < 4) for n in range(40)], [1.0] * 40, ["t"] * 40, range(40))
    assert up.interval == pytest.approx(expected.interval) and up.difference == pytest.approx(-0.9)


def test_what_is_no_mean_over_documents_or_has_no_bounds_gets_no_interval() -> None:
    (total,) = benchmark_scores([line(None, 31.0, 29.0, "word_perplexity")], {"t": {"higher_is_better": {"word_perplexity": False}}})
    assert total.n is None and total.interval is None and total.verdict == "cannot tell" and total.difference == -2.0
    (loose,) = benchmark_scores([line(str(n), 5.0, 4.0 + n) for n in range(30)], {"t": {}})
    assert loose.n == 30 and loose.interval is None and loose.base_interval is None


def test_the_facts_name_what_was_asked(finished: Path) -> None:
    known = read_json(finished / "eval" / "harness.json")
    assert known["limit"] is None and known["tasks"]["sum_of_two"]["documents"] == {"original": 24, "effective": 24}

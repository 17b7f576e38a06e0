"""From the pairs of eval/harness.jsonl to what a report says of a standard benchmark: scores, paired differences, intervals.

Each document is a group of its own. A metric that is no mean over documents keeps the harness's
totals, and gets no interval; nor does one that leaves the range from 0 to 1, such as a perplexity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nomoat.paired import paired_difference
from nomoat.report_schema import Benchmark
from nomoat.score_schema import Interval, Verdict
from nomoat.statistics import mean_interval, rate_interval

OPPOSITE: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}


def benchmarks(lines: Sequence[dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> list[Benchmark]:
    """One entry for each task, metric and filter, in the order of the lines; `tasks` says which way each metric points."""
    keys = list(dict.fromkeys((line["task"], line["metric"], line["filter"]) for line in lines))
    return [
        _benchmark(
            [line for line in lines if (line["task"], line["metric"], line["filter"]) == key],
            tasks[key[0]].get("higher_is_better", {}).get(key[1]),
        )
        for key in keys
    ]


def _benchmark(lines: Sequence[dict[str, Any]], higher_is_better: bool | None) -> Benchmark:
    base, adapter = [line["base"] for line in lines], [line["adapter"] for line in lines]
    documents = [(number, line["document"]) for number, line in enumerate(lines)]
    by_document = lines[0]["document"] is not None
    bounded = by_document and all(0 <= value <= 1 for value in (*base, *adapter))  # what our intervals are made for
    found = paired_difference(adapter, base, [""] * len(lines), documents) if bounded else None
    verdict: Verdict = found.verdict if found and higher_is_better is not None else "cannot tell"
    means = sum(base) / len(base), sum(adapter) / len(adapter)
    return Benchmark(
        **{key: lines[0][key] for key in ("task", "metric", "filter")},
        n=len(lines) if by_document else None,
        base=means[0],
        adapter=means[1],
        base_interval=_interval(base, documents) if bounded else None,
        adapter_interval=_interval(adapter, documents) if bounded else None,
        difference=means[1] - means[0],
        interval=found.interval if found else None,
        smallest_detectable=found.smallest_detectable if found else None,
        higher_is_better=higher_is_better,
        verdict=OPPOSITE[verdict] if higher_is_better is False else verdict,
    )


def _interval(scores: Sequence[float], documents: Sequence[Any]) -> Interval | None:
    return rate_interval(scores, documents) if set(scores) <= {0, 1} else mean_interval(scores, documents, (0.0, 1.0))

"""The simulation of coverage: reproducible, and able to detect an interval that is too narrow."""

from __future__ import annotations

import numpy as np
import pytest

from nomoat.stats import coverage
from nomoat.stats.coverage import Cell, failures, grid, table
from nomoat.stats.paired import paired_difference


def test_a_small_grid_is_the_same_every_time_and_makes_a_table() -> None:
    cells = list(grid(12, rows=(20,), seeds=(1, 3)))
    assert len(cells) == len(coverage.RATES) * len(coverage.CORRELATIONS) * 3
    assert cells == list(grid(12, rows=(20,), seeds=(1, 3), processes=2)), "in two processes too"
    lines = table(cells).splitlines()
    assert lines[2].startswith("| rate | 1 | 20 |") and [line.split("|")[2].strip() for line in lines[2:]] == ["1", "1", "3"]


def test_intervals_that_are_too_narrow_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(scores: list[int], groups: list[int]) -> tuple[float, float]:
        mean = sum(scores) / len(scores)
        half = 1.96 * (mean * (1 - mean) / len(scores)) ** 0.5
        return mean - half, mean + half

    monkeypatch.setattr(coverage, "score_interval", plain)
    cells = list(grid(60, rows=(50,), seeds=()))
    low = failures(cells, 60)
    assert any(cell.rate == 0.99 for cell in low) and all(cell.coverage is not None and cell.coverage < 0.93 for cell in low)


def test_a_cell_without_intervals_says_so_and_is_no_failure() -> None:
    cell = Cell("rate", 20, 0.5, 0.0, 1, None, 0.0)
    assert failures([cell], 100) == [] and "too few groups" in table([cell])
    assert all(cell.coverage is None for cell in grid(2, rows=(6,), seeds=(1, 3), rates=(0.5,))), "two groups are too few"


def test_the_simulation_uses_the_intervals_of_a_report() -> None:
    draw = np.random.default_rng(1)
    groups = [at // 3 for at in range(30)]
    runs = [((draw.random(30) < 0.7).astype(int).tolist(), (draw.random(30) < 0.4).astype(int).tolist()) for _ in range(20)]
    intervals = coverage.paired_intervals(runs, groups)
    for (a, b), interval in zip(runs, intervals, strict=True):
        assert interval == pytest.approx(paired_difference(a, b, ["f"] * 30, groups).interval)
    assert coverage.paired_intervals([([1] * 6, [0] * 6)], [at // 3 for at in range(6)]) == [None], "two groups are too few"

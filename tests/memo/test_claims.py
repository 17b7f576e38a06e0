"""The table of claims is whole, and a run says under which table it was made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nomoat.memo import claims


def test_the_eighteen_claims_each_have_a_rule_or_a_reason_and_thresholds_that_the_rule_names() -> None:
    assert [claim.id for claim in claims.CLAIMS] == [f"M{number}" for number in range(1, 19)]
    for claim in claims.CLAIMS:
        assert claim.quote and bool(claim.out_of_reach) == (claim.rule == "none")
        assert claim.out_of_reach or (claim.limits and claim.runs and claim.leaves_out), claim.id
    roles = {role for claim in claims.CLAIMS for role in claim.runs}
    assert roles == {"default", "lora", "full", "rank1", "rank4", "rank64", "a", "b", "b_on_a", "noisy25", "gemma"}


def test_a_threshold_or_a_word_changed_is_another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    before = claims.claims_sha256()
    assert before == claims.claims_sha256() and len(before) == 64
    eighth = claims.CLAIMS[7]
    for changed in (replace(eighth, limits={**eighth.limits, "margin": 0.2}), replace(eighth, rule=eighth.rule + ".")):
        monkeypatch.setattr(claims, "CLAIMS", (*claims.CLAIMS[:7], changed, *claims.CLAIMS[8:]))
        assert claims.claims_sha256() != before
    owned_up = replace(eighth, limits={**eighth.limits, "margin": 0.2}, looked_at=eighth.limits)
    monkeypatch.setattr(claims, "CLAIMS", (*claims.CLAIMS[:7], owned_up, *claims.CLAIMS[8:]))
    assert claims.claims_sha256() == before, "the table that the runs were made under is still known"

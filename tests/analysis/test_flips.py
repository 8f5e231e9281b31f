"""What a reading says of a verdict: the whole table of outcomes, by hand."""

from __future__ import annotations

import pytest

from bnexp.analysis.claims import ClaimVerdict, Reading
from bnexp.analysis.flips import answer_of, answers, survival
from bnexp.analysis.verdicts import OUTCOMES, Outcome, Verdict
from bnexp.comparison import Comparison

# own outcome -> what readings that come out as in OUTCOMES say: survives, flips, open
TABLE = {
    "supported": "sofffooo",
    "supported, direction only": "ssfffooo",
    "contradicted": "ffsofooo",
    "contradicted, direction only": "ffssfooo",
    "negligible": "ffffsooo",
    "inconclusive": "fffffooo",
    "untested": "oooooooo",
    "invalid": "oooooooo",
}


@pytest.mark.parametrize("own", OUTCOMES)
def test_a_reading_survives_flips_or_stays_open(own: Outcome) -> None:
    assert OUTCOMES == (
        "supported", "supported, direction only", "contradicted", "contradicted, direction only", "negligible",
        "inconclusive", "untested", "invalid",
    )  # fmt: skip
    assert "".join(answer_of(own, other)[0] for other in OUTCOMES) == TABLE[own]


def test_kinds_are_counted_apart_and_in_their_order() -> None:
    def verdict(outcome: Outcome) -> Verdict:
        return Verdict(outcome, "", None, 0)

    readings = {
        Reading("learning rate", 0.1): verdict("supported"),
        Reading("learning rate", 0.3): verdict("contradicted"),
        Reading("learning rate", 1.0): verdict("inconclusive"),
        Reading("learning rate", 3.0): verdict("supported, direction only"),
        Reading("statistics", "precise"): verdict("supported"),
    }
    claim = ClaimVerdict(Comparison("difference", "higher", 0.01), "relu", verdict("supported"), readings)
    rates, statistics = survival(claim, "learning rate"), survival(claim, "statistics")
    assert (rates.survives, rates.flips, rates.open, rates.num) == ((0.1,), {0.3: "contradicted"}, (1.0, 3.0), 4)
    assert (statistics.survives, statistics.flips, statistics.open) == (("precise",), {}, ())
    assert list(answers(claim).values()) == ["survives", "flips", "open", "open", "survives"]

"""The Wilson interval against published values and at the borders; means of scores."""

import pytest

from mindspore_impl.evaluation.scoring import summary, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_borders():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 7)[0] == 0.0 and wilson_interval(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match="8"):
        wilson_interval(8, 7)


def test_summary_has_no_interval_where_scores_are_shares():
    lines = [{"f1": 0.5, "em": 0.0, "group": ""}, {"f1": 1.0, "em": 1.0, "group": ""}]
    found = summary(("f1", "em"), lines)
    assert found["metrics"]["f1"] == {"value": 0.75, "stderr": pytest.approx(0.25)}
    assert {"low", "high"} <= set(found["metrics"]["em"]) and found["groups"] == {}

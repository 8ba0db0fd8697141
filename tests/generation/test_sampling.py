"""Sampling: the distribution, its cuts, ties and seeds."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.generation import sampling
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import choose, uniforms
from mindspore_impl.schema import check_ranges

PROBABILITIES = np.array([0.4, 0.3, 0.2, 0.1])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def _draws(logits_V, count=20000, **settings):
    uniform_B = np.random.Generator(np.random.PCG64(7)).random(count)
    return choose(np.tile(logits_V, (count, 1)).astype(np.float32), SamplingOptions(**settings), uniform_B)


def _expect(tokens, probabilities):
    """A chi-square test at about 1 in 10,000 with a fixed seed."""
    counts, wanted = np.bincount(tokens, minlength=len(probabilities)), np.asarray(probabilities) * len(tokens)
    assert (counts[wanted == 0] == 0).all()
    positive = wanted > 0
    assert ((counts - wanted)[positive] ** 2 / wanted[positive]).sum() < 21


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        ({"temperature": 2.0}, PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 9}, PROBABILITIES),
        ({"top_p": 0.3}, [1, 0, 0, 0]),
        ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.95}, PROBABILITIES),
        ({"top_k": 3, "top_p": 0.75}, [4 / 7, 3 / 7, 0, 0]),  # after top_k 4/9 + 3/9 = 0.78
    ],
)
def test_distribution(settings, expected):
    _expect(_draws(LOGITS, **settings), expected)
    backwards = _draws(LOGITS[::-1], **settings)
    _expect(3 - backwards, expected)


def test_top_p_keeps_the_token_that_reaches_it():
    """0.5 + 0.25 reaches exactly 0.75 (all powers of two, so no rounding): two tokens, not one and not three."""
    logits = np.log2(np.array([0.5, 0.25, 0.125, 0.125])) * np.log(2)
    assert set(_draws(logits, top_p=0.75 - 1e-6)) == {0, 1}
    assert set(_draws(logits, top_p=0.75 + 1e-6)) == {0, 1, 2}
    assert set(_draws(logits, top_p=1e-9)) == {0}


def test_ties_go_to_the_lowest_ids():
    flat = np.zeros(6, np.float32)
    assert set(_draws(flat, temperature=0.0)) == {0}
    assert set(_draws(flat, top_k=2)) == {0, 1}
    assert set(_draws(flat, top_p=0.5)) == {0, 1, 2}
    assert set(_draws(np.array([0, 1, 0, 1, 1, 0]), top_k=2)) == {1, 3}


def test_flat_rows_outgrow_the_first_candidates(monkeypatch):
    """top_p must not be cut by the number of candidates that are looked at first."""
    logits = np.random.default_rng(0).standard_normal((8, 50)).astype(np.float32)
    uniform_B = np.random.default_rng(1).random(8)
    whole = choose(logits, SamplingOptions(top_p=0.99), uniform_B)
    monkeypatch.setattr(sampling, "NUCLEUS_CANDIDATES", 4)
    np.testing.assert_array_equal(choose(logits, SamplingOptions(top_p=0.99), uniform_B), whole)
    few = choose(logits, SamplingOptions(top_p=0.2), uniform_B)
    monkeypatch.setattr(sampling, "NUCLEUS_CANDIDATES", 50)
    np.testing.assert_array_equal(choose(logits, SamplingOptions(top_p=0.2), uniform_B), few)


def test_extreme_logits_and_uniforms():
    logits = np.array([[-1e30, 88.0, -np.inf, 90.0]], np.float32)
    for uniform in (0.0, np.nextafter(1.0, 0.0)):
        for settings in ({}, {"top_p": 0.9999}, {"top_k": 3}, {"temperature": 0.01}, {"temperature": 50.0}):
            assert choose(logits, SamplingOptions(**settings), np.array([uniform]))[0] in (1, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_logits_are_an_error(bad):
    logits = np.zeros((2, 5), np.float32)
    logits[1, 3] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        choose(logits, SamplingOptions(temperature=0.0), np.zeros(2))
    with pytest.raises(UserError, match="NaN or infinite"):
        choose(np.full((1, 5), -np.inf, np.float32), SamplingOptions(), np.zeros(1))


def test_streams_depend_on_the_seed_alone():
    together = uniforms([5, 6, 5], 4)
    np.testing.assert_array_equal(together[0], together[2])
    np.testing.assert_array_equal(together[1], uniforms([6], 9)[0, :4])
    assert (together[0] != together[1]).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1),
     ("max_new_tokens", 0), ("batch_size", 0)],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(key, value):
    with pytest.raises(UserError, match=rf"stage\.sampling\.{key}"):
        check_ranges(SamplingOptions(**{key: value}), "stage.sampling")
    check_ranges(SamplingOptions(), "stage.sampling")

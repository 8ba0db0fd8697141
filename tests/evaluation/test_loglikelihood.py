"""Log-likelihoods of continuations: what is shared between contexts changes nothing but rounding."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.loglikelihood import (
    DecoderScorer,
    Query,
    Scorer,
    check_queries,
    encode_pair,
    groups_of,
    step,
)
from tests.evaluation.conftest import logits_of

VOCABULARY = 37


def ids(seed: int, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(1, VOCABULARY, count))


def oracle(model, query: Query) -> list[tuple[float, bool]]:
    """Each continuation by the float64 forward pass over the whole text."""
    found = []
    for text in query.continuations:
        logits_LV = logits_of(model, [*query.context, *text])
        rows_SV = logits_LV[len(query.context) - 1 : -1]
        logp_SV = rows_SV - np.log(np.exp(rows_SV).sum(-1, keepdims=True))
        total = sum(float(logp_SV[place, token]) for place, token in enumerate(text))
        found.append((total, bool((rows_SV.argmax(-1) == np.array(text)).all())))
    return found


def queries(model) -> list[Query]:
    """Two subjects with long headers, texts of many lengths, options of one token and of several, one greedy."""
    letters = ((3,), (4,), (5,), (6,))
    made = [Query(ids(1, 40) + ids(10 + n, 3 + n), letters) for n in range(3)]
    made += [Query(ids(2, 50) + ids(20 + n, 2), (ids(30 + n, 2), ids(40 + n, 5), (7,), (7,))) for n in range(3)]
    made += [Query(ids(3, 2), (ids(5, 9),)), Query((1,), (ids(6, 1), ids(6, 2))), Query(ids(2, 50), ((9,),))]
    context = ids(7, 6)
    best = logits_of(model, context)[-1].argmax()
    return made + [Query(context, ((int(best),), ((int(best) + 1) % VOCABULARY,)))]


def assert_equal(found, wanted):
    assert [f.greedy for f in found] == [greedy for _, greedy in wanted]
    np.testing.assert_allclose([f.logp for f in found], [logp for logp, _ in wanted], rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_shared_prefixes_change_nothing(model):
    asked = queries(model)
    answers = Scorer(model, batch_size=2)(asked)
    for query, found in zip(asked, answers, strict=True):
        assert_equal(found, oracle(model, query))
    assert [f.greedy for f in answers[-1]] == [True, False]


@pytest.mark.slow
def test_logits_in_chunks(model):
    from mindspore_impl.model.extend import ScoreExtension

    scorer = Scorer(model, batch_size=4)
    scorer.score = ScoreExtension(model, most_logits=5 * VOCABULARY)
    query = Query(ids(3, 2), (ids(5, 9), ids(8, 9)))
    assert_equal(scorer([query])[0], oracle(model, query))


def test_a_header_is_read_once(model):
    scorer, read = Scorer(model, batch_size=2), []
    inner = scorer.extend
    scorer.extend = lambda ids_BL, *rest: read.append(ids_BL.shape) or inner(ids_BL, *rest)
    asked = [Query(ids(1, 40) + ids(10 + n, 3), ((3,), (4,), (5,), (6,))) for n in range(6)]
    for query, found in zip(asked, scorer(asked), strict=True):
        assert_equal(found, oracle(model, query))
    assert read == [(1, 48)], "the header alone: letters take no pass of their own"


@pytest.mark.slow
def test_a_decoder_serves_too(model):
    from mindspore_impl.generation.engine import ModelDecoder

    asked = queries(model)[5:]
    for query, found in zip(asked, DecoderScorer(ModelDecoder(model, 64))(asked), strict=True):
        assert_equal(found, oracle(model, query))


def test_contexts_are_grouped_where_it_saves_reading():
    one, two = tuple(range(100)), tuple(range(100, 200))
    contexts = [two + (1, 2), one + (1,), one + (2, 9), two + (3,), one + (4,), (5,)]
    groups = {tuple(sorted(members)): shared for shared, members in groups_of(contexts)}
    assert groups == {(1, 2, 4): 100, (0, 3): 100, (5,): 0} or groups == {(1, 2, 4, 5): 0, (0, 3): 100}
    assert groups_of([(1, 2), (3,), (1, 3)]) == [(0, [0, 2, 1])], "little in common: one group, nothing shared"
    assert groups_of([one, one]) == [(99, [0, 1])], "the last token has its continuation to predict"
    assert groups_of([]) == []


def test_shapes_are_few():
    assert [step(n) for n in (0, 1, 2, 8, 9, 13, 33, 49, 65, 97)] == [1, 1, 8, 8, 12, 16, 48, 64, 96, 128]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (Query((), ((1,),)), "at least one token"),
        (Query((1,), ((),)), "at least one token"),
        (Query((1,), ((37,),)), "outside the model's vocabulary"),
        (Query((1,) * 8, ((2,), (2, 2, 2))), "question 0: 10 tokens exceed the limit of 9; ask less"),
    ],
)
def test_bad_queries_are_refused(query, words):
    with pytest.raises(UserError, match=words):
        check_queries([query], VOCABULARY, 9, "ask less")
    check_queries([Query((1,) * 8, ((2, 2),))], VOCABULARY, 9, "")


def test_pairs_are_cut_where_the_context_ends():
    pieces = {"ab": [7], "ab c": [7, 8], "a": [5], "ab cd": [7, 9]}
    tokenizer = SimpleNamespace(bos_id=1, eos_id=2, encode=lambda text: pieces.get(text, [len(text)]))
    assert encode_pair(tokenizer, "ab", " c") == ((1, 7), (8,))
    assert encode_pair(tokenizer, "ab ", "c") == ((1, 7), (8,)), "the space belongs to the continuation"
    assert encode_pair(tokenizer, "", "ab") == ((1,), (7,))
    assert encode_pair(tokenizer, "a", "b") == ((1,), (7,)), "a piece across the border"
    tokenizer.bos_id = None
    assert encode_pair(tokenizer, "ab", " c") == ((7,), (8,)) and encode_pair(tokenizer, "", "ab") == ((2,), (7,))

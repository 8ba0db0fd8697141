"""Streaming, stop ids and the repetition penalty: one sequence gets what it gets in a batch."""

import dataclasses

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.generation.decoder import Drawing, Draws, stream
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import choose, penalise
from tests.generation.tokens import Ids, make_prompts


class Scripted:
    """A Decoder whose next tokens are given; it records what it is asked."""

    slots, vocab_size = 64, 37

    def __init__(self, tokens):
        self.tokens, self.calls = list(tokens), []

    def padded(self, length):
        return 32

    def prefill(self, ids_BL, length_B):
        self.calls.append((ids_BL.shape, ids_BL[0, : length_B[0]].tolist(), ids_BL[0, length_B[0] :].any()))
        return self._next()

    def decode(self, token_B, position_B):
        self.calls.append((int(token_B[0]), int(position_B[0])))
        return self._next()

    def _next(self):
        logits = np.zeros((1, self.vocab_size), np.float32)
        logits[0, self.tokens.pop(0)] = 9
        return logits


def greedy(**changes):
    return SamplingOptions(temperature=0.0, max_new_tokens=8, **changes)


def drawn(decoder, prompt, sampling):
    return list(stream(decoder, Drawing(Ids(), 37), prompt, sampling, 0))


def test_tokens_go_back_at_their_positions():
    decoder = Scripted([7, 8, 5])
    assert drawn(decoder, [1, 9, 4], greedy()) == [7, 8, 5]
    assert decoder.calls == [((1, 32), [1, 9, 4], False), (7, 3), (8, 4)]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"repetition_penalty": 1.7, "temperature": 0.8}])
def test_a_stream_equals_the_batch(engine, settings):
    sampling, prompts = SamplingOptions(max_new_tokens=8, batch_size=4, **settings), make_prompts(4)
    together = engine.generate(prompts, sampling, [3, 4, 5, 6])
    for prompt, seed, generation in zip(prompts, (3, 4, 5, 6), together, strict=True):
        assert list(stream(engine.decoder(96), engine.drawing, prompt, sampling, seed)) == generation.ids


def test_stop_ids_end_an_answer_without_finishing_it(engine):
    prompts = make_prompts(16)
    free = engine.generate(prompts, greedy(), list(range(16)))
    stop = next(generation.ids[1] for generation in free if len(generation.ids) > 2)
    for before, after in zip(free, engine.generate(prompts, greedy(stop_ids=[stop]), list(range(16))), strict=True):
        cut = before.ids[: before.ids.index(stop) + 1] if stop in before.ids else before.ids
        assert after.ids == cut and after.finished == (cut[-1] == 5)
    assert drawn(Scripted([7, 8, 9]), [1], greedy(stop_ids=[8])) == [7, 8]


def test_penalty_is_that_of_transformers():
    """RepetitionPenaltyLogitsProcessor and the three warpers in transformers' order, on logits without ties."""
    torch = pytest.importorskip("torch")
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = np.random.default_rng(0)
    logits_BV = generator.standard_normal((6, 50)).astype(np.float32) * 3
    seen = generator.integers(0, 50, (6, 9))
    seen_BV = np.zeros((6, 50), bool)
    np.put_along_axis(seen_BV, seen, True, axis=1)
    options = SamplingOptions(temperature=0.7, top_k=9, top_p=0.8)
    ids, scores = torch.tensor(seen), torch.tensor(logits_BV)
    scores = RepetitionPenaltyLogitsProcessor(1.3)(ids, scores)
    ours_BV = penalise(logits_BV, seen_BV, 1.3)
    np.testing.assert_allclose(ours_BV, scores.numpy(), rtol=1e-6)
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(9), TopPLogitsWarper(0.8)):
        scores = warper(ids, scores)
    wanted_BV = torch.softmax(scores, -1).numpy()
    steps = 4000
    uniform = (np.arange(steps) + 0.5) / steps
    for row in range(6):
        drawn = choose(np.tile(ours_BV[row], (steps, 1)), options, uniform)
        share = np.bincount(drawn, minlength=50) / steps
        np.testing.assert_allclose(share, wanted_BV[row], atol=1.01 / steps)


def test_prompt_and_answer_count_for_the_penalty():
    """Ids seen in the prompt lose first, then each drawn id too."""

    class Level(Scripted):
        def _next(self):
            return np.array([[0, 0, 1.0, 0.9, 0.8, 0.0, 0.7]], np.float32)

    decoder = Level([])
    decoder.vocab_size = 7
    ids = dataclasses.replace(Ids(), vocab_size=7)
    sampling = SamplingOptions(temperature=0.0, repetition_penalty=2.0, max_new_tokens=4)
    assert list(stream(decoder, Drawing(ids, 7), [2], sampling, 0)) == [3, 4, 6, 2]


def test_a_sequence_with_nan_logits_ends_alone():
    """The others of its batch draw what they draw without it; one that has ended does not count as damaged."""
    logits_BV = np.tile(np.arange(37, dtype=np.float32), (3, 1))
    logits_BV[2, 5] = 99
    draws = Draws(Drawing(Ids(), 37), [[1]] * 3, [0] * 3, greedy(), skip_nan=True)
    assert draws.draw(logits_BV).tolist() == [36, 36, 5]
    logits_BV[1:, 7] = np.nan
    assert draws.draw(logits_BV)[0] == 36
    assert draws.nan_B.tolist() == [False, True, False]
    assert (draws.ended_B.tolist(), draws.finished_B.tolist()) == ([False, True, True], [False, False, True])


def test_a_template_without_bos_bars_nothing():
    ids = dataclasses.replace(Ids(), bos_id=None)
    assert list(stream(Scripted([1, 5]), Drawing(ids, 37), [3], greedy(), 0)) == [1, 5]
    assert drawn(Scripted([1, 5]), [3], greedy())[0] != 1


@pytest.mark.parametrize(("prompt", "message"), [
    ([1] * 57, "57 .* max_new_tokens 8 .* 64"),
    ([], "the prompt is empty"), ([37], "37"),
])  # fmt: skip
def test_impossible_prompts_are_refused(prompt, message):
    with pytest.raises(UserError, match=message):
        drawn(Scripted([5]), prompt, greedy())


def test_a_model_pads_prompts_to_few_lengths(engine):
    decoder = engine.decoder(96)
    assert [decoder.padded(length) for length in (1, 32, 33, 90)] == [32, 32, 96, 96]


def test_logits_are_not_changed_in_place():
    """A decoder may hand out its own buffer."""
    found = []

    class Remembering(Scripted):
        def _next(self):
            logits = super()._next()
            found.append((logits, logits.copy()))
            return logits

    drawn(Remembering([7, 5]), [1, 3], greedy())
    for handed, copy in found:
        np.testing.assert_array_equal(handed, copy)

"""The engine: what a sequence gets depends on its prompt and its seed, not on its company."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from tests.generation.tokens import Ids, make_prompts
from tests.model.pangu_reference import forward_document
from tests.model.small_models import build, small_options, weights_of


def _greedy(model, prompt, new, eos):
    """Greedy decoding by the float64 oracle, from the whole text each time."""
    ids, found = list(prompt), []
    for _ in range(new):
        logits_LV = forward_document(weights_of(model), model.options, np.array(ids), np.arange(len(ids)))
        logits_LV[-1, Ids.bos_id] = -np.inf
        found.append(int(logits_LV[-1].argmax()))
        ids.append(found[-1])
        if found[-1] == eos:
            break
    return found


def test_greedy_equals_the_oracle(engine, model):
    prompts = make_prompts(6)
    results = engine.generate(prompts, SamplingOptions(temperature=0.0, max_new_tokens=8, batch_size=4), list(range(6)))
    for prompt, result in zip(prompts, results, strict=True):
        assert result.ids == _greedy(model, prompt, 8, 5)
        assert result.finished == (result.ids[-1] == 5)
        assert 5 not in result.ids[:-1]
    assert len(results) == 6


def test_seed_not_batch_decides(engine):
    """Alone, in another order, and beside other prompts: the same text."""
    options = SamplingOptions(max_new_tokens=8, batch_size=4)
    prompts, seeds = make_prompts(7), [10, 11, 12, 13, 14, 15, 16]
    together = engine.generate(prompts, options, seeds)
    order = [4, 2, 6, 0, 1, 3, 5]
    shuffled = engine.generate([prompts[i] for i in order], options, [seeds[i] for i in order])
    assert [together[i] for i in order] == shuffled
    for i in (0, 5):
        company = make_prompts(3, seed=9)
        assert engine.generate([*company, prompts[i]], options, [1, 2, 3, seeds[i]])[3] == together[i]
    first, second, third, _ = engine.generate([[7, 8, 9]] * 4, options, [3, 3, 4, 5])
    assert first == second and first != third


def test_trap_18_a_cut_answer_is_not_finished(engine):
    """finished means that the end token was generated; nothing adds one."""
    results = engine.generate(make_prompts(16), SamplingOptions(temperature=2.0, max_new_tokens=8, batch_size=4),
                              list(range(16)))  # fmt: skip
    assert {result.finished for result in results} == {True, False}
    for result in results:
        assert result.finished == (5 in result.ids)
        assert len(result.ids) == 8 or result.finished


def test_decoding_stops_early(engine, monkeypatch):
    """When every sequence has ended no further token is computed; without a prompt, none at all."""
    from mindspore_impl.generation import decoder as module

    steps = []

    def always_end(logits_BV, options, uniform_B):
        steps.append(len(logits_BV))
        return np.full(len(logits_BV), 5, np.int32)

    monkeypatch.setattr(module, "choose", always_end)
    results = engine.generate(make_prompts(3), SamplingOptions(max_new_tokens=8, batch_size=4), [0, 1, 2])
    assert steps == [3] and all(result.ids == [5] and result.finished for result in results)
    assert engine.generate([], SamplingOptions(), []) == [] and steps == [3]


def test_the_last_position_can_be_reached(ms_runtime):
    from mindspore_impl.generation.engine import Engine

    model = build(small_options(max_position_embeddings=20, num_hidden_layers=1))
    prompt = make_prompts(1, longest=12)[0] * 12
    results = Engine(model, Ids(eos_id=36)).generate([prompt[:12]], SamplingOptions(temperature=0.0, max_new_tokens=8),
                                                    [0])  # fmt: skip
    assert results[0].ids == _greedy(model, prompt[:12], 8, 36)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1] * 121, "prompt 1: 121 .* max_new_tokens 8 .* max_position_embeddings 128"),
        ([], "prompt 1 is empty"),
        ([1, 37], "prompt 1 .* 37"),
        ([-1], "prompt 1 "),
    ],
)
def test_impossible_prompts_are_refused(engine, prompt, message):
    with pytest.raises(UserError, match=message):
        engine.generate([[1], prompt], SamplingOptions(max_new_tokens=8), [0, 1])


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_only_ids_of_the_tokenizer_are_drawn(engine_for, temperature):
    """A model's vocabulary may be padded beyond the tokenizer's."""
    options = SamplingOptions(temperature=temperature, max_new_tokens=8, batch_size=4)
    wide, narrow = (
        {i for result in engine_for(Ids(vocab_size=size)).generate(make_prompts(4), options, [0, 1, 2, 3])
         for i in result.ids}
        for size in (64, 20)
    )  # fmt: skip
    assert max(wide) >= 20 > max(narrow)


def test_bos_is_never_drawn(engine_for):
    """A sample has one BOS, at its start."""
    options = SamplingOptions(temperature=1e4, max_new_tokens=8, batch_size=4)  # all ids alike
    for bos in (1, 2):
        results = engine_for(Ids(bos_id=bos, eos_id=36)).generate(make_prompts(32), options, list(range(32)))
        drawn = {i for result in results for i in result.ids}
        assert bos not in drawn and 3 - bos in drawn


def test_foreign_tokenizer_is_refused(model):
    from mindspore_impl.generation.engine import Engine

    with pytest.raises(UserError, match="id 40 .* 37"):
        Engine(model, Ids(vocab_size=64, bos_id=40))
    with pytest.raises(UserError, match="id 45892 .* 37"):
        Engine(model, Ids(eos_id=45892))


def test_damaged_weights_are_named(engine, model, monkeypatch):
    from mindspore import Tensor

    weight = model.model.norm.weight
    kept = weight.asnumpy().copy()
    weight.set_data(Tensor(np.full(24, np.nan, np.float32)))
    try:
        with pytest.raises(UserError, match="NaN"):
            engine.generate(make_prompts(4), SamplingOptions(max_new_tokens=8, batch_size=4), [0, 1, 2, 3])
        monkeypatch.setattr(engine, "skip_nan", True)
        found = engine.generate(make_prompts(4), SamplingOptions(max_new_tokens=8, batch_size=4), [0, 1, 2, 3])
        assert [(each.nan, each.finished, len(each.ids)) for each in found] == [(True, False, 1)] * 4
    finally:
        weight.set_data(Tensor(kept))


def test_progress_bar_counts_sequences(engine, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    engine.generate(make_prompts(3), SamplingOptions(max_new_tokens=8, batch_size=4), [0, 1, 2], progress="evaluating")
    assert "evaluating: 100%" in capsys.readouterr().err
    engine.generate(make_prompts(3), SamplingOptions(max_new_tokens=8, batch_size=4), [0, 1, 2])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("count", [1, 5, 400])
def test_every_prompt_is_planned_once_and_fits(count, batch_size):
    from mindspore_impl.generation.engine import plan_batches

    lengths = (2.0 ** np.random.default_rng(count).uniform(0, 10, count)).astype(int).tolist()
    plan = plan_batches(lengths, 1100, lambda length: max(1, min(batch_size, 2048 // length)))
    assert sorted(index for _, _, part in plan for index in part) == list(range(count))
    for length, rows, part in plan:
        assert 0 < len(part) <= rows <= max(1, min(batch_size, 2048 // length))
        assert max(lengths[index] for index in part) <= length <= 1100
        assert length <= 4 * max(32, 2 * min(lengths[index] for index in part))


def test_compiled_shapes_are_few():
    from mindspore_impl.generation.engine import plan_batches

    def shapes(lengths):
        return [(length, rows, len(part)) for length, rows, part in plan_batches(lengths, 4000, lambda length: 64)]

    assert shapes([20] * 300 + [40] * 3 + [100]) == [(32, 64, 64)] * 4 + [(128, 64, 48)]
    assert shapes([20] * 100 + [40] * 100) == [(64, 64, 64)] * 3 + [(64, 64, 8)]
    assert shapes([20, 20, 1000]) == [(32, 4, 2), (1024, 4, 1)]
    assert shapes([3950]) == [(4000, 1, 1)]


def test_long_prompts_take_fewer_rows(ms_runtime):
    from mindspore_impl.ops.attention import rows_that_fit

    assert rows_that_fit(4, 128) >= 1024 and rows_that_fit(4, 1024) == 32 and rows_that_fit(12, 32768) == 1


def test_rows_on_ascend_stay_within_the_kernels_documents(ms_runtime, monkeypatch):
    """A right-padded row is two documents, its text and its padding."""
    from mindspore_impl.ops.attention import MAX_DOCUMENTS, rows_that_fit

    monkeypatch.setitem(ms_runtime._state, "device", "Ascend")
    assert 2 * rows_that_fit(4, 32) == MAX_DOCUMENTS == 1024

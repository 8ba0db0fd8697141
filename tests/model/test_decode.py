"""Decoding against the full forward pass: same weights, same numbers."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from tests.model.pangu_reference import forward_document
from tests.model.small_models import build, shared, small_options, weights_of

PROMPT, NEW, SLOTS = 6, 5, 12


def _sequences():
    generator = np.random.default_rng(5)
    return [generator.integers(1, 37, size + NEW).astype(np.int32) for size in (6, 4, 4, 1, 1)]


def _decode(model, sequences, left_B):
    """Per step, the logits after the prompt and after each of the NEW tokens."""
    from mindspore import Tensor

    from mindspore_impl.model.decode import Decode, Prefill

    rows = len(sequences)
    size_B = np.array([len(sequence) - NEW for sequence in sequences], np.int32)
    start_B = (PROMPT - size_B) * left_B
    ids, positions, segments = (np.full((rows, PROMPT), fill, np.int32) for fill in (9, 3, 0))  # padding is garbage
    for row, sequence in enumerate(sequences):
        where = slice(start_B[row], start_B[row] + size_B[row])
        ids[row, where], positions[row, where], segments[row, where] = sequence[: size_B[row]], range(size_B[row]), 1
    last_B = start_B + size_B - 1
    inputs = [Tensor(array.astype(np.int32)) for array in (ids, positions, segments, last_B)]
    logits, caches = Prefill(model, SLOTS)(*inputs)
    found = [logits.asnumpy()]
    decode = Decode(model, SLOTS)
    for step in range(NEW):
        token_B = np.array([sequence[size_B[row] + step] for row, sequence in enumerate(sequences)], np.int32)
        inputs = [Tensor(array.astype(np.int32)) for array in (token_B, last_B + 1 + step, start_B)]
        logits, caches = decode(*inputs, *caches)
        found.append(logits.asnumpy())
    return found, size_B


@pytest.mark.parametrize("shape", ["tied", "untied_wide_head"])
def test_decoding_equals_the_oracle(ms_runtime, shape):
    """Full, right-padded and left-padded prompts in one batch, against float64 NumPy."""
    model, sequences = shared(shape), _sequences()
    found, size_B = _decode(model, sequences, np.array([0, 0, 1, 0, 1]))
    for row, sequence in enumerate(sequences):
        full_LV = forward_document(weights_of(model), model.options, sequence, np.arange(len(sequence)))
        for step, logits_BV in enumerate(found):
            np.testing.assert_allclose(logits_BV[row], full_LV[size_B[row] - 1 + step], rtol=2e-4, atol=2e-5)


def test_graphs_share_the_weights(ms_runtime):
    """Both use the model's current weights under their names; a prompt may fill the cache."""
    from mindspore import Tensor

    from mindspore_impl.model.decode import Decode, Prefill

    model = build(small_options(num_hidden_layers=1))
    names = [parameter.name for parameter in model.get_parameters()]
    ids = np.arange(1, 7, dtype=np.int32)[None]
    prompt = [Tensor(array) for array in (ids, ids - 1, np.ones_like(ids), np.array([5], np.int32))]
    prefill, decode = Prefill(model, 6), Decode(model, 6)
    assert {id(parameter) for parameter in decode.get_parameters()} == {id(p) for p in model.get_parameters()}
    assert [parameter.name for parameter in model.get_parameters()] == names
    before, caches = prefill(*prompt)
    assert len(caches) == 2 and caches[0].shape == (1, 2, 6, 6)
    step = [Tensor(np.array([value], np.int32)) for value in (6, 5, 0)]  # the last token once more, in its slot
    np.testing.assert_allclose(decode(*step, *caches)[0].asnumpy(), before.asnumpy(), rtol=1e-4, atol=1e-5)
    weight = model.model.embed_tokens.weight
    weight.set_data(Tensor(weight.asnumpy() * 1.5))
    logits, caches = prefill(*prompt)
    expected = forward_document(weights_of(model), model.options, ids[0], ids[0] - 1)[-1]
    assert np.abs((logits - before).asnumpy()).max() > 1e-2
    for found in (logits, decode(*step, *caches)[0]):
        np.testing.assert_allclose(found.asnumpy()[0], expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("slots", [0, 65])
def test_cache_must_fit_the_positions(ms_runtime, slots):
    from mindspore_impl.model.decode import Decode

    with pytest.raises(UserError, match="max_position_embeddings 64"):
        Decode(shared("tied"), slots)

"""Decoding against the full forward pass: same weights, same numbers."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from tests.model.small_models import SHAPES, build, run, small_options

PROMPT, NEW, SLOTS = 6, 5, 12


def _sequences():
    generator = np.random.default_rng(5)
    return [generator.integers(1, 37, size + NEW).astype(np.int32) for size in (6, 4, 4, 1, 1)]


def _full(model, sequences):
    """The logits at every position of each sequence, from the training graph."""
    width = PROMPT + NEW
    ids, positions, segments = (np.zeros((len(sequences), width), np.int32) for _ in range(3))
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], segments[row, : len(sequence)] = sequence, 1
        positions[row, : len(sequence)] = np.arange(len(sequence))
    return run(model, ids, positions, segments)


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


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_equals_the_full_forward(ms_runtime, shape):
    """Full, right-padded and left-padded prompts in one batch."""
    model = build(small_options(**SHAPES[shape]))
    sequences = _sequences()
    full_BLV = _full(model, sequences)
    found, size_B = _decode(model, sequences, np.array([0, 0, 1, 0, 1]))
    for step, logits_BV in enumerate(found):
        for row in range(len(sequences)):
            np.testing.assert_allclose(logits_BV[row], full_BLV[row, size_B[row] - 1 + step], rtol=1e-4, atol=1e-5)


def test_prompt_as_long_as_the_cache(ms_runtime):
    from mindspore import Tensor

    from mindspore_impl.model.decode import Prefill

    model = build(small_options())
    ids = np.arange(1, 7, dtype=np.int32)[None]
    positions, ones = np.arange(6, dtype=np.int32)[None], np.ones_like(ids)
    logits, caches = Prefill(model, 6)(*map(Tensor, (ids, positions, ones, np.array([5], np.int32))))
    np.testing.assert_allclose(logits.asnumpy(), run(model, ids, positions, ones)[:, -1], rtol=1e-4, atol=1e-5)
    assert len(caches) == 2 * model.options.num_hidden_layers and caches[0].shape == (1, 2, 6, 6)


def _empty_caches(model):
    """Zero caches for a Decode of one row that starts without a Prefill."""
    from mindspore import Tensor

    shape = (
        1,
        model.options.num_key_value_heads,
        SLOTS,
        model.options.hidden_size // model.options.num_attention_heads,
    )
    return [Tensor(np.zeros(shape, np.float32)) for _ in range(2 * model.options.num_hidden_layers)]


def test_decoding_uses_the_current_weights_and_keeps_their_names(ms_runtime):
    from mindspore import Tensor

    from mindspore_impl.model.decode import Decode

    model = build(small_options())
    names = [parameter.name for parameter in model.get_parameters()]
    decode = Decode(model, SLOTS)
    assert {id(parameter) for parameter in decode.get_parameters()} == {id(p) for p in model.get_parameters()}
    assert [parameter.name for parameter in model.get_parameters()] == names
    inputs = [Tensor(np.array([value], np.int32)) for value in (3, 0, 0)]
    before = decode(*inputs, *_empty_caches(model))[0].asnumpy()
    weight = model.model.embed_tokens.weight
    weight.set_data(Tensor(weight.asnumpy() * 1.5))
    after = decode(*inputs, *_empty_caches(model))[0].asnumpy()
    one = np.array([[3]], np.int32)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, run(model, one, one * 0, one * 0 + 1)[:, 0], rtol=1e-4, atol=1e-5)


def test_graphs_export_and_reload(ms_runtime, tmp_path):
    import mindspore as ms
    from mindspore import Tensor, nn

    from mindspore_impl.model.decode import Decode, Prefill

    model = build(small_options())
    ids = np.arange(1, 7, dtype=np.int32)[None]
    prompt = [Tensor(array) for array in (ids, ids - 1, np.ones_like(ids), np.array([5], np.int32))]
    step = [Tensor(np.array([value], np.int32)) for value in (3, 2, 0)]
    for cache in _empty_caches(model):
        step.append(Tensor(np.random.default_rng(0).standard_normal(cache.shape), cache.dtype))
    for name, cell, inputs in (("prefill", Prefill(model, SLOTS), prompt), ("decode", Decode(model, SLOTS), step)):
        logits, caches = cell(*inputs)
        ms.export(cell, *inputs, file_name=str(tmp_path / name), file_format="MINDIR")
        loaded = nn.GraphCell(ms.load(str(tmp_path / f"{name}.mindir")))(*inputs)
        flat = [array for item in loaded for array in (item if isinstance(item, (tuple, list)) else [item])]
        for found, wanted in zip(flat, (logits, *caches), strict=True):
            np.testing.assert_allclose(found.asnumpy(), wanted.asnumpy(), atol=1e-6)


@pytest.mark.parametrize("slots", [0, 65])
def test_cache_must_fit_the_positions(ms_runtime, slots):
    from mindspore_impl.model.decode import Decode

    with pytest.raises(UserError, match="max_position_embeddings 64"):
        Decode(build(small_options()), slots)

import numpy as np
import pytest

from tests.ops.ascend_recorder import ascend  # noqa: F401

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0]], np.int32)


def _inputs(heads=4, kv_heads=2, width=6, scale=1.0):
    generator = np.random.default_rng(3)
    return [(scale * generator.standard_normal((SEGMENTS.size, h, width))).astype(np.float32)
            for h in (heads, kv_heads, kv_heads)]  # fmt: skip


def _reference(query, key, value, segments):
    """One token at a time, in float64; padding attends to padding."""
    batch, length = segments.shape
    tokens, heads, width = query.shape
    out, group = np.zeros((tokens, heads, width)), heads // key.shape[1]
    for n in range(tokens):
        row, t = divmod(n, length)
        seen = [row * length + s for s in range(t + 1) if segments[row, s] == segments[row, t]]
        for head in range(heads):
            scores = key[seen, head // group].astype(np.float64) @ query[n, head] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            out[n, head] = weights / weights.sum() @ value[seen, head // group]
    return out.reshape(tokens, heads * width)


def _apply(query, key, value, segments):
    from mindspore import Tensor

    from mindspore_impl.ops.attention import make_attention

    mask, attend = make_attention(query.shape[1], key.shape[1], query.shape[2])
    return attend(Tensor(query), Tensor(key), Tensor(value), mask(Tensor(segments))).asnumpy()


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(3, 3, 5), (4, 1, 8)])
def test_composed(ms_runtime, heads, kv_heads, width):
    inputs = _inputs(heads, kv_heads, width)
    np.testing.assert_allclose(_apply(*inputs, SEGMENTS), _reference(*inputs, SEGMENTS), rtol=1e-4, atol=1e-5)


def test_trap_05_masking_is_exact_and_finite_at_large_scores(ms_runtime):
    """Hidden scores of +-1000 neither leak nor overflow, and no -inf is involved."""
    from mindspore_impl.ops.attention import MASKED

    assert np.isfinite(np.float32(MASKED))
    inputs = _inputs(scale=30.0)
    found = _apply(*inputs, SEGMENTS)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, _reference(*inputs, SEGMENTS), rtol=1e-3, atol=2e-2)


def test_composed_gradients_equal_differentiated_softmax(ms_runtime):
    """The hand-written backward pass against MindSpore's own, of the same mathematics written plainly."""
    import mindspore as ms
    from mindspore import Tensor, ops

    from mindspore_impl.ops.attention import make_attention

    query, key, value = map(Tensor, _inputs(4, 2, 6))
    mask, attend = make_attention(4, 2, 6)
    pull = Tensor(np.random.default_rng(4).standard_normal((SEGMENTS.size, 24)).astype(np.float32))
    batch, length = SEGMENTS.shape
    seen = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]) & np.tri(length, dtype=bool)
    bias = Tensor(np.where(seen, 0, -1e9).astype(np.float32)[:, None])

    def plain(query, key, value):
        query, key, value = (x.reshape(batch, length, -1, 6).transpose(0, 2, 1, 3) for x in (query, key, value))
        key, value = ops.repeat_interleave(key, 2, 1), ops.repeat_interleave(value, 2, 1)
        scores = ops.matmul(query, key.transpose(0, 1, 3, 2)) / 6**0.5 + bias
        return (ops.matmul(ops.softmax(scores, -1), value).transpose(0, 2, 1, 3).reshape(-1, 24) * pull).sum()

    def ours(query, key, value):
        return (attend(query, key, value, mask(Tensor(SEGMENTS))) * pull).sum()

    found, expected = (ms.grad(f, (0, 1, 2))(query, key, value) for f in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-4, atol=1e-5)


def test_ascend_call(ascend):  # noqa: F811
    inputs = _inputs(4, 2, 16)
    found = _apply(*inputs, SEGMENTS)
    np.testing.assert_allclose(found, _reference(*inputs, SEGMENTS), rtol=1e-4, atol=1e-5)
    call = ascend["flash"]
    assert (call["query"], call["key"], call["head_num"]) == ((18, 4, 16), (18, 2, 16), 4)
    assert call["scalar_value"] == 0.25 and call["sparse_mode"] == 3
    hidden = call["attn_mask"].asnumpy()
    assert hidden.shape == (2048, 2048) and hidden.dtype == np.uint8
    assert hidden[5, 6] == 1 and hidden[5, 5] == 0 and hidden[6, 5] == 0


def test_ascend_document_ends(ascend):  # noqa: F811
    """A row's end closes a document even where the next row begins with the same segment number."""
    from mindspore import Tensor

    from mindspore_impl.ops.attention import make_attention

    ends = make_attention(4, 2, 16)[0](Tensor(SEGMENTS)).asnumpy()
    assert ends.dtype == np.int64
    assert ends.tolist() == [3, 5, 6, 7, 12, 18] + [18] * 12


def test_ascend_document_ends_compile_in_a_graph(ms_runtime, monkeypatch):
    from mindspore import Tensor

    from mindspore_impl.ops.attention import make_attention

    monkeypatch.setitem(ms_runtime._state, "device", "Ascend")
    ends = make_attention(4, 2, 16)[0](Tensor(SEGMENTS)).asnumpy()
    assert ends.tolist() == [3, 5, 6, 7, 12, 18] + [18] * 12


def test_ascend_refuses_too_many_documents(ascend, monkeypatch):  # noqa: F811
    """Surplus documents must not share a mask: the last end falls short, which the kernel does not accept."""
    from mindspore_impl.ops import attention

    monkeypatch.setattr(attention, "MAX_DOCUMENTS", 4)
    with pytest.raises(RuntimeError, match="must end at T1"):
        _apply(*_inputs(4, 2, 16), SEGMENTS)

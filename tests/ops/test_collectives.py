"""Shares and buffers; the Ascend forms with stand-ins for their operators; the update of a share."""

import numpy as np
import pytest

from mindspore_impl.ops import collectives
from tests.ops.ascend_recorder import ascend  # noqa: F401

SHAPES = [(3, 5), (4,), (2, 2), (7,)]
RANKS = 3


def tensors(seed=0):
    draw = np.random.default_rng(seed)
    return [draw.normal(size=shape).astype(np.float32) for shape in SHAPES]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 6), (3, 5)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shares_are_equal_and_put_together_again(shape, ranks):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) + 1
    shares = [collectives.share_of(array, ranks, rank) for rank in range(ranks)]
    assert {share.shape for share in shares} == {(collectives.share_size(shape, ranks),)}
    assert sum(share.size for share in shares) - array.size < ranks
    np.testing.assert_array_equal(collectives.whole_of(np.stack(shares), shape), array)


def test_buffers_keep_the_order_and_the_limit():
    shapes = [(4,), (3,), (9,), (1,), (2, 2), (3,)]
    assert collectives.buffers(shapes, 8) == [[0, 1, 2], [3, 4, 5]]
    assert collectives.buffers(shapes, 7) == [[0, 1], [2], [3, 4, 5]]
    assert collectives.buffers(shapes, 0) == [[i] for i in range(6)]
    assert collectives.buffers(shapes) == [list(range(6))]
    assert [len(buffer) for buffer in collectives.buffers([(1,)] * 150)] == [64, 64, 22]


def test_one_rank_keeps_its_gradients(ms_runtime):
    import mindspore as ms

    given = tensors()
    found, half = collectives.make_sum(SHAPES, 1, False)(tuple(map(ms.Tensor, given)))
    for tensor, array in zip(found, given, strict=True):
        np.testing.assert_array_equal(tensor.asnumpy(), array)
    assert float(half.asnumpy()) == pytest.approx(sum((array.astype(float) ** 2).sum() for array in given) / 2)


@pytest.fixture
def operators(ascend, monkeypatch):  # noqa: F811
    """Collectives of RANKS ranks that all hold the same; -> their names, fusion numbers and input shapes, by call."""
    import mindspore as ms
    from mindspore import ops

    monkeypatch.setenv("RANK_ID", "1")
    monkeypatch.setattr(collectives, "BUFFER", 19)
    calls = []

    class Recorded:
        def __init__(self):
            self.fusion = None

        def add_prim_attr(self, name, value):
            assert name == "fusion"
            self.fusion = value

        def __call__(self, x):
            assert x.ndim >= 1
            calls.append((type(self).__name__, self.fusion, tuple(x.shape)))
            return self.result(x)

    class AllReduce(Recorded):
        def result(self, x):
            assert x.dtype == ms.float32
            return x * RANKS

    class ReduceScatter(Recorded):
        def result(self, x):
            assert x.dtype == ms.float32 and x.ndim == 1 and x.shape[0] % RANKS == 0
            return x.reshape((RANKS, -1))[1] * RANKS

    class AllGather(Recorded):
        def result(self, x):
            assert x.ndim == 1
            return ops.concat((x - 1, x, x + 1))

    for form in (AllReduce, ReduceScatter, AllGather):
        monkeypatch.setattr(ops, form.__name__, form)
    return calls


def half_squares(arrays):
    return sum((array.astype(float) ** 2).sum() for array in arrays) / 2


def test_ascend_adds_tensor_by_tensor(operators):
    import mindspore as ms

    given = tensors()
    found, half = collectives.make_sum(SHAPES, RANKS, False)(tuple(map(ms.Tensor, given)))
    assert operators == [
        ("AllReduce", 1, (3, 5)), ("AllReduce", 1, (4,)), ("AllReduce", 2, (2, 2)), ("AllReduce", 2, (7,))
    ]  # fmt: skip
    for tensor, array in zip(found, given, strict=True):
        np.testing.assert_array_equal(tensor.asnumpy(), array * RANKS)
    assert float(half.asnumpy()) == pytest.approx(half_squares(given) * RANKS**2, rel=1e-6)


def test_ascend_scatters_shares_and_adds_up_their_squares(operators):
    import mindspore as ms

    given = tensors()
    found, half = collectives.make_sum(SHAPES, RANKS, True)(tuple(map(ms.Tensor, given)))
    assert operators == [
        ("ReduceScatter", 1, (15,)), ("ReduceScatter", 1, (6,)), ("ReduceScatter", 2, (6,)),
        ("ReduceScatter", 2, (9,)), ("AllReduce", None, (1,)),
    ]  # fmt: skip
    own = [collectives.share_of(array, RANKS, 1) * np.float32(RANKS) for array in given]
    for tensor, array in zip(found, own, strict=True):
        np.testing.assert_array_equal(tensor.asnumpy(), array)
    assert half.shape == () and float(half.asnumpy()) == pytest.approx(half_squares(own) * RANKS, rel=1e-6)


def test_ascend_gathers_tensor_by_tensor(operators):
    import mindspore as ms

    own = [np.arange(collectives.share_size(shape, RANKS), dtype=np.float32) for shape in SHAPES]
    found = collectives.make_gather(SHAPES, RANKS)(tuple(map(ms.Tensor, own)))
    assert [call[:2] for call in operators] == [("AllGather", 1), ("AllGather", 1), ("AllGather", 2), ("AllGather", 2)]
    for tensor, array, shape in zip(found, own, SHAPES, strict=True):
        rows = np.stack((array - 1, array, array + 1))
        np.testing.assert_array_equal(tensor.asnumpy(), collectives.whole_of(rows, shape))


@pytest.mark.parametrize("form", ["CpuUpdate", "ComposedUpdate"])
def test_a_tensor_is_updated_as_a_parameter_is(form, ms_runtime):
    import mindspore as ms
    from mindspore import nn, ops

    from mindspore_impl.ops import adamw_update

    draw = np.random.default_rng(0)
    w, m, g = (draw.normal(size=(2, 37)).astype(np.float32) for _ in range(3))
    v = draw.random((2, 37)).astype(np.float32)
    scalars = [ms.Tensor(value, ms.float32) for value in (0.01, 0.9, 0.98, 1e-3, 0.3)]  # rate beta1 beta2 eps decay

    class Rows(nn.Cell):
        """Updates row 1 of w, cut out of the parameter."""

        def __init__(self):
            super().__init__()
            self.w, self.m, self.v = (
                ms.Parameter(ms.Tensor(array.copy()), name=name) for name, array in (("w", w), ("m", m[1]), ("v", v[1]))
            )
            self.update = getattr(adamw_update, form)()

        def construct(self, gradient):
            row = ops.slice(self.w.reshape((-1,)), (37,), (37,))
            return self.update(row, self.m, self.v, *scalars, gradient)

    rows = Rows()
    found = rows(ms.Tensor(g[1])).asnumpy(), rows.m.asnumpy(), rows.v.asnumpy()
    peer = [ms.Parameter(ms.Tensor(array.copy()), name=name) for name, array in (("a", w), ("b", m), ("c", v))]
    ops.AdamWeightDecay()(*peer, *scalars, ms.Tensor(g))
    tolerance = 0 if form == "CpuUpdate" else 2e-6
    for ours, theirs in zip(found, peer, strict=True):
        np.testing.assert_allclose(ours, theirs.asnumpy()[1], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(rows.w.asnumpy(), w, err_msg="the parameter itself is not written")

import numpy as np

from tests.ops.ascend_recorder import ascend  # noqa: F401


def _inputs():
    generator = np.random.default_rng(1)
    gate, up = (generator.standard_normal((7, 13)).astype(np.float32) * 4 for _ in range(2))
    gate[0, :3] = [-100.0, 100.0, 0.0]
    return gate, up


def _reference(gate, up):
    return gate / (1 + np.exp(-gate.astype(np.float64))) * up


def _apply(gate, up):
    from mindspore import Tensor

    from mindspore_impl.ops.swiglu import make_swiglu

    return make_swiglu()(Tensor(gate), Tensor(up)).asnumpy()


def test_composed(ms_runtime):
    np.testing.assert_allclose(_apply(*_inputs()), _reference(*_inputs()), rtol=1e-5, atol=1e-6)


def test_ascend_call_puts_the_gate_first(ascend):  # noqa: F811
    np.testing.assert_allclose(_apply(*_inputs()), _reference(*_inputs()), rtol=1e-5, atol=1e-6)
    assert ascend["swiglu"] == {"x": (7, 26), "dim": -1}

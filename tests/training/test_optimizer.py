"""AdamW against NumPy and against mindformers, decay groups, saved state, and an import that leaves no trace."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.training.options import OptimizerOptions

SHAPES = {"matrix": (4, 5), "bias": (3,), "table": (6, 2)}


def parameters():
    import mindspore as ms

    draw = np.random.default_rng(0)
    return [ms.Parameter(ms.Tensor(draw.normal(size=s).astype(np.float32)), name=n) for n, s in SHAPES.items()]


def gradients(step, scale=1.0):
    draw = np.random.default_rng(100 + step)
    return [(scale * draw.normal(size=shape)).astype(np.float32) for shape in SHAPES.values()]


def numpy_adamw(values, options, steps):
    """Loshchilov and Hutter's AdamW with bias correction, float64; decay on matrices only."""
    values = [value.astype(np.float64) for value in values]
    m, v = ([np.zeros_like(value) for value in values] for _ in range(2))
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(t)):
            m[i] = options.adam_beta1 * m[i] + (1 - options.adam_beta1) * g
            v[i] = options.adam_beta2 * v[i] + (1 - options.adam_beta2) * g.astype(np.float64) ** 2
            m_hat, v_hat = m[i] / (1 - options.adam_beta1**t), v[i] / (1 - options.adam_beta2**t)
            decay = options.weight_decay if values[i].ndim >= 2 else 0.0
            values[i] = values[i] * (1 - options.learning_rate * decay)
            values[i] -= options.learning_rate * m_hat / (np.sqrt(v_hat) + options.adam_epsilon)
    return values


def test_update_is_adamw_with_bias_correction_on_any_state(ms_runtime):
    import mindspore as ms

    from mindspore_impl.training.optimizer import load_state, make_optimizer, state_of

    options = OptimizerOptions(
        learning_rate=0.05, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.3, adam_epsilon=1e-2
    )
    held, start = parameters(), [parameter.asnumpy().copy() for parameter in parameters()]
    optimizer = make_optimizer(held, options, 64)
    for t in range(1, 65):
        optimizer(tuple(ms.Tensor(g) for g in gradients(t)))
    for parameter, expected in zip(held, numpy_adamw(start, options, 64), strict=True):
        np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=1e-4, atol=2e-5, err_msg=parameter.name)
    assert optimizer.global_step.asnumpy().tolist() == [64]
    state, other = state_of(optimizer), make_optimizer(parameters(), options, 64)
    assert set(state) == {f"adam_{k}.{n}" for k in "mv" for n in SHAPES} | {"global_step"}
    load_state(other, state, "there")
    for name, array in state_of(other).items():
        np.testing.assert_array_equal(array, state[name])
    with pytest.raises(UserError, match="there: 'adam_m.matrix'"):
        load_state(other, state | {"adam_m.matrix": np.zeros(2, np.float32)}, "there")


def test_update_equals_mindformers_own(ms_runtime):
    """With the small epsilon that is the default."""
    import mindspore as ms

    from mindspore_impl.training.mindformers import import_mindformers
    from mindspore_impl.training.optimizer import make_optimizer

    import_mindformers("core.optim")
    from mindformers.core.optim import AdamW

    options = OptimizerOptions(learning_rate=0.01, lr_scheduler_type="constant", warmup_steps=0)
    ours, theirs = parameters(), parameters()
    optimizer = make_optimizer(ours, options, 8)
    groups = [{"params": [theirs[0], theirs[2]], "weight_decay": 0.1}, {"params": [theirs[1]], "weight_decay": 0.0}]
    betas = (options.adam_beta1, options.adam_beta2)
    peer = AdamW([*groups, {"order_params": theirs}], learning_rate=0.01, betas=betas, eps=options.adam_epsilon)
    for t in range(8):
        given = tuple(ms.Tensor(g) for g in gradients(t))
        optimizer(given)
        peer(given)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=2e-6, atol=2e-7)


NONSENSE = [{"adam_beta1": 1.0}, {"adam_beta2": 0.0}, {"adam_epsilon": 0.0}, {"weight_decay": -1.0}]
NONSENSE += [{"warmup_steps": -1}, {"warmup_ratio": 1.5}, {"learning_rate": 0.0}, {"min_lr_ratio": 2.0}]


@pytest.mark.parametrize("bad", NONSENSE)
def test_nonsense_is_refused(bad, ms_runtime):
    from mindspore_impl.training.optimizer import make_optimizer

    with pytest.raises(UserError, match="optimizer"):
        make_optimizer(parameters(), OptimizerOptions(**bad), 8)


@pytest.mark.slow
def test_importing_mindformers_writes_nothing_here(tmp_path):
    code = (
        "from mindspore_impl.training import mindformers as m; m.import_mindformers('core.optim', 'models.llama')\n"
        "from mindformers import LlamaConfig; LlamaConfig()"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "output").exists()
    assert "mindformers" not in done.stdout

"""Stand-ins for the rooms below: a linear model and its gradient in NumPy, batches, a stream, a tiny real model."""

import json
from types import SimpleNamespace

import numpy as np

from mindspore_impl.training.options import OptimizerOptions, TrainOptions

VOCAB, ROWS, LENGTH = 16, 8, 6
OPTIMIZER = OptimizerOptions(learning_rate=0.02, warmup_steps=2)
OPTIONS = TrainOptions(logging_steps=2, save_steps=3, eval_steps=4, tensorboard=False)


def linear_network(seed: int = 0, dtype=np.float32, metrics: int = 2, vocab: int = VOCAB):
    """A fast LossNetwork look-alike: logits_NV = table_VV[input] + bias_V, weighted sum of cross entropies.

    Its metrics (first: cross entropy, last: tokens) are not detached, so a step that differentiates them goes wrong.
    """
    import mindspore as ms
    from mindspore import nn, ops

    class LinearNetwork(nn.Cell):
        def __init__(self):
            super().__init__()
            draw = np.random.default_rng(seed)
            self.table = ms.Parameter(ms.Tensor(draw.normal(size=(vocab, vocab)).astype(dtype)), name="table")
            self.fill = ms.Tensor(np.zeros(metrics - 2, np.float32)) if metrics > 2 else None
            self.bias = ms.Parameter(ms.Tensor(draw.normal(size=(vocab,)).astype(dtype)), name="bias")

        def construct(self, input_ids_BL, target_ids_BL, loss_weight_BL, segment_ids_BL, position_ids_BL):
            logits_NV = ops.gather(self.table, input_ids_BL.reshape((-1,)), 0) + self.bias
            logp_NV = ops.log_softmax(ops.cast(logits_NV, ms.float32), -1)
            weight_N = loss_weight_BL.reshape((-1,))
            ce_N = -ops.gather_elements(logp_NV, 1, target_ids_BL.reshape((-1, 1))).reshape((-1,))
            counted_N = ops.cast(weight_N != 0, ms.float32)
            ce_1, tokens_1 = (ce_N * counted_N).sum(keepdims=True), counted_N.sum(keepdims=True)
            metrics_M = (ce_1, tokens_1) if self.fill is None else (ce_1, self.fill, tokens_1)
            return (ce_N * weight_N).sum(), ops.concat(metrics_M)

    return LinearNetwork()


def linear_gradient(table_VV, bias_V, batch):
    """-> loss and the gradients of table and bias, in float64."""
    inputs_N, targets_N = batch.input_ids_BL.ravel(), batch.target_ids_BL.ravel()
    weight_N = batch.loss_weight_BL.ravel().astype(np.float64)
    logits_NV = table_VV.astype(np.float64)[inputs_N] + bias_V
    p_NV = np.exp(logits_NV - logits_NV.max(1, keepdims=True))
    p_NV /= p_NV.sum(1, keepdims=True)
    loss = -(weight_N * np.log(p_NV[np.arange(len(targets_N)), targets_N])).sum()
    grad_NV = p_NV * weight_N[:, None]
    grad_NV[np.arange(len(targets_N)), targets_N] -= weight_N
    grad_table_VV = np.zeros(table_VV.shape)
    np.add.at(grad_table_VV, inputs_N, grad_NV)
    return loss, grad_table_VV, grad_NV.sum(0)


def batch(seed: int = 0, masked: float = 0.5, weight: float | None = None, vocab: int = VOCAB):
    """A PackedBatch look-alike with one segment a row; `weight` None: 1 / supervised tokens."""
    draw, shape = np.random.default_rng(seed), (ROWS, LENGTH)
    supervised_BL = draw.random(shape) >= masked
    weight = (1.0 / max(supervised_BL.sum(), 1)) if weight is None else weight
    return SimpleNamespace(
        input_ids_BL=draw.integers(1, vocab, shape).astype(np.int32),
        target_ids_BL=np.where(supervised_BL, draw.integers(1, vocab, shape), 0).astype(np.int32),
        loss_weight_BL=np.where(supervised_BL, weight, 0).astype(np.float32),
        segment_ids_BL=np.ones(shape, np.int32),
        position_ids_BL=np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        tokens=ROWS * LENGTH,
        supervised=int(supervised_BL.sum()),
    )


VALIDATION = {"held": [batch(90, weight=1.0), batch(91, weight=1.0)]}


def split(whole, parts: int):
    """The same global batch as `parts` micro-batches; the weights keep the global denominator."""
    size = len(whole.input_ids_BL) // parts
    arrays = {name: value for name, value in vars(whole).items() if isinstance(value, np.ndarray)}
    return [
        SimpleNamespace(**{name: value[m * size : (m + 1) * size] for name, value in arrays.items()})
        for m in range(parts)
    ]


def tiny_model(seed: int = 0):
    """A real model of one layer."""
    from mindspore_impl.model.options import ModelOptions
    from mindspore_impl.model.pangu import PanguForCausalLM

    sizes = ModelOptions(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    return PanguForCausalLM(sizes, seed=seed)


def linear(seed: int):
    """A linear network for the trainer."""
    return linear_network(seed, metrics=7)


def run(folder, stream, *, steps=8, options=OPTIONS, validation=VALIDATION, optimizer=OPTIMIZER, seed=0, **more):
    """Train a linear network that starts from `seed`; -> its weights and the result."""
    from mindspore_impl.training.trainer import TrainingJob, train

    model = linear(seed)
    job = TrainingJob(
        model=model, stream=stream, validation=validation, optimizer=optimizer, options=options, folder=folder,
        steps=steps, **more,
    )  # fmt: skip
    result = train(job)
    return weights(model), result


def lines(folder):
    """The lines of metrics.jsonl without what is timed."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]


def equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert that arrays by name have the same bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def weights(model) -> dict[str, np.ndarray]:
    """Copies of all parameters."""
    return {parameter.name: parameter.asnumpy().copy() for parameter in model.get_parameters()}


class Stream:
    """A BatchStream look-alike: step s always gives the same batch; may raise before a step, or spoil one."""

    def __init__(self, raise_at=None, bad=(), accumulation=1):
        self.raise_at, self.bad, self.accumulation, self.asked = raise_at, bad, accumulation, []

    def steps(self, start, stop):
        for step in range(start, stop):
            if step == self.raise_at:
                raise KeyboardInterrupt
            self.asked.append(step)
            whole = batch(seed=step)
            if step in self.bad:
                whole.loss_weight_BL = whole.loss_weight_BL * np.nan
            yield split(whole, self.accumulation)

    def tokens(self, step):
        return 7 * self.accumulation

    def epochs_at(self, step):
        return step / 4

"""The loss network: sums, splits, zero weights, and that every term reaches the weights."""

import math
from functools import cache
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindspore_impl.data.batches import PackedBatch, one_pass
from mindspore_impl.errors import UserError
from mindspore_impl.losses.objective import METRICS, LossNetwork, held_out_loss, tensors_of
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import PanguForCausalLM
from mindspore_impl.text.chat import Sample
from tests.losses.teacher_cases import make_case, mode_of, row_error

pytestmark = pytest.mark.usefixtures("ms_runtime")
VOCAB, TOP_K = 40, 4


class Table(nn.Cell):
    """A model whose logits are a table: row ids[n] of `hidden_table` times an identity lm_head."""

    def __init__(self, logits_NV: np.ndarray):
        super().__init__()
        self.hidden_table = Parameter(Tensor(logits_NV), name="hidden_table")
        self.lm_head_weight = Parameter(Tensor(np.eye(logits_NV.shape[1], dtype=np.float32)), name="lm_head")

    def hidden(self, input_ids_BL, position_ids_BL, segment_ids_BL):
        return self.hidden_table.gather(input_ids_BL, 0)


def table_batch(case, rows=1):
    """The case as a packed batch of `rows` rows over the table's rows in order."""
    shape = (rows, -1)
    count = len(case.target_ids_N)
    ids_BL = np.arange(count, dtype=np.int32).reshape(shape)
    return PackedBatch(
        ids_BL, case.target_ids_N.reshape(shape), np.ones_like(ids_BL), ids_BL, case.loss_weight_N.reshape(shape),
        case.teacher_ids_NK.reshape((rows, count // rows, -1)), case.teacher_logp_NK.reshape((rows, count // rows, -1)),
        case.teacher_tail_logp_N.reshape(shape),
    )  # fmt: skip


def runner(network, with_teacher):
    """batch -> (loss, metrics_M, {parameter: gradient})."""
    parameters = [p for p in network.trainable_params() if p.name != "lm_head"]
    grad_fn = ms.value_and_grad(network, None, ms.ParameterTuple(parameters), has_aux=True)

    def run(batch):
        (loss, metrics_M), grads = grad_fn(*tensors_of(batch, with_teacher))
        found = {p.name: g.asnumpy() for p, g in zip(parameters, grads, strict=True)}
        return float(loss.asnumpy()), metrics_M.asnumpy(), found

    return run


@cache
def table_runner(kd_weight, ce_weight=None, teacher=True):
    """case -> (loss, metrics_M, gradient of the logits): one graph for all cases of a shape."""
    table = Table(np.zeros((6, 31), np.float32))
    run = runner(LossNetwork(table, ObjectiveOptions(kd_weight, ce_weight), teacher), teacher)

    def run_case(case):
        table.hidden_table.set_data(Tensor(case.logits_NV))
        loss, metrics_M, grads = run(table_batch(case))
        return loss, metrics_M, grads["hidden_table"]

    return run_case


@pytest.mark.parametrize(
    ("divergence", "support"),
    [("reverse_kl", "tail_bucket"), ("jsd", "renormalised"), ("forward_kl", "sampled"), (None, None)],
)
def test_trap_06_loss_metrics_and_gradient_equal_the_oracle(divergence, support):
    """Both terms arrive, in the loss and in the gradient, with a teacher and without."""
    teacher = divergence is not None
    case = make_case(0, 6, 31, 5, 3.0, 2.0, mask="some", mode=mode_of(support))
    options = ObjectiveOptions(0.7, 0.4, divergence, support, 2.0) if teacher else ObjectiveOptions()
    reference = objective(*case[:3], *(case[3:] if teacher else (None,) * 3), options)
    loss, metrics_M, grads = runner(LossNetwork(Table(case.logits_NV), options, teacher), teacher)(table_batch(case))
    assert loss == pytest.approx(reference.loss, rel=1e-5)
    assert row_error(grads["hidden_table"], reference.grad_NV, 0.02) <= 1e-5
    on = case.loss_weight_N != 0
    rows = [reference.ce_N, reference.kd_N, *reference.diagnostics.values(), np.ones(6)]
    np.testing.assert_allclose(metrics_M, [row[on].sum() for row in rows], rtol=1e-5, atol=1e-5)
    assert len(METRICS) == len(rows) == 7 and metrics_M[METRICS.index("tokens")] == on.sum()


def test_trap_06_each_term_alone_reaches_the_gradient():
    """KD changes the gradient, so does CE, and the two add up; a run of kd_weight 0 logs KD and ignores it."""
    case = make_case(1, 6, 31, 5, 2.0, mask="none")
    found = {weights: table_runner(*weights)(case) for weights in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0))}
    plain = table_runner(0.0, teacher=False)(case)
    ce_NV, kd_NV, both_NV = (grad_NV for _, _, grad_NV in found.values())
    np.testing.assert_allclose(ce_NV, plain[2], atol=6e-6)
    assert found[0.0, 1.0][0] == pytest.approx(plain[0], rel=1e-5)
    assert np.abs(kd_NV).max() > 0.1 and np.abs(kd_NV - ce_NV).max() > 0.1
    np.testing.assert_allclose(both_NV, ce_NV + kd_NV, atol=1e-6)
    for _, metrics_M, _ in found.values():
        np.testing.assert_allclose(metrics_M, found[1.0, 1.0][1], rtol=1e-6)


def test_metrics_carry_no_gradient():
    """Differentiating loss + metrics gives the gradient of the loss."""
    case = make_case(2, 6, 31, 5, 2.0, mask="none")
    network = LossNetwork(Table(case.logits_NV), ObjectiveOptions(0.5), True)

    def both(*arguments):
        loss, metrics_M = network(*arguments)
        return loss + 10 * metrics_M.sum()

    got = ms.grad(both, None, network.model.hidden_table)(*tensors_of(table_batch(case), True)).asnumpy()
    np.testing.assert_allclose(got, table_runner(0.5)(case)[2], atol=1e-6)


@pytest.mark.parametrize("teacher", [True, False])
def test_trap_04_a_fully_masked_batch_gives_zero(teacher):
    """Loss, metrics and gradient are exactly 0, with and without a teacher, and whatever the logits."""
    case = make_case(3, 6, 31, 5, 8.0, mask="all")
    case.logits_NV[:2] = 3e38
    case.logits_NV[:2, ::2] = -3e38
    case.teacher_ids_NK[:], case.teacher_logp_NK[:], case.teacher_tail_logp_N[:] = -1, -1e4, 0
    loss, metrics_M, grad_NV = table_runner(0.5 * teacher, teacher=teacher)(case)
    assert loss == 0 and not metrics_M.any() and not grad_NV.any()


@pytest.mark.parametrize("teacher", [True, False])
def test_trap_05_extreme_masked_rows_do_not_reach_the_loss(teacher):
    """Rows of weight 0 with logits of 3e38 (whose cross-entropy is infinite): the rest is bit for bit as before."""
    case = make_case(4, 6, 31, 5, 8.0, mask="some")
    off, results = case.loss_weight_N == 0, []
    for value in (0.0, 3e38):
        case.logits_NV[off] = value * np.where(np.arange(31) % 2, 1, -1)
        results.append(table_runner(0.5 * teacher, teacher=teacher)(case))
    (loss, metrics_M, grad_NV), spoiled = results
    assert np.isfinite(spoiled[0]) and loss == spoiled[0]
    np.testing.assert_array_equal(metrics_M, spoiled[1])
    np.testing.assert_array_equal(grad_NV, spoiled[2])
    assert not spoiled[2][off].any()


def test_trap_06_distillation_without_a_teacher_is_refused():
    with pytest.raises(UserError, match="objective.kd_weight=0.5 needs a teacher store"):
        LossNetwork(Table(np.zeros((2, 3), np.float32)), ObjectiveOptions(0.5), False)
    with pytest.raises(UserError, match="objective.divergence=jsd"):
        LossNetwork(
            Table(np.zeros((2, 3), np.float32)), ObjectiveOptions(0.5, divergence="jsd", support="sampled"), True
        )


@pytest.fixture(scope="module")
def model(ms_runtime):
    options = ModelOptions(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2,
                           num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3)  # fmt: skip
    return PanguForCausalLM(options, seed=1)


@pytest.fixture(scope="module")
def run_kd(model):
    return runner(LossNetwork(model, ObjectiveOptions(0.6, temperature=2.0), True), True)


def samples_of(count, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(rng.integers(4, 17))
        supervised = np.arange(length) >= rng.integers(1, length)
        made.append(Sample(rng.integers(0, VOCAB, length).astype(np.int32), supervised, f"r{number}", "fast"))
    return made


class RandomTeacher:
    """Stands in for an open store: rows that depend on a sample's ids alone."""

    top_k = TOP_K

    def lookup(self, ids, supervised):
        rng = np.random.default_rng(int(ids.sum()))
        count = int(supervised[1:].sum())
        log_p = rng.standard_normal((count, VOCAB))
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        ids_SK = np.argsort(-log_p, axis=1)[:, :TOP_K]
        logp_SK = np.take_along_axis(log_p, ids_SK, 1)
        return ids_SK.astype(np.int32), logp_SK.astype(np.float32), np.log1p(-np.exp(logp_SK).sum(1)).astype(np.float32)


def added(results):
    """Sum of (loss, metrics, gradients) over micro-batches: what accumulation does."""
    losses, metrics, grads = zip(*results, strict=True)
    return sum(losses), sum(metrics), {name: sum(g[name] for g in grads) for name in grads[0]}


def assert_same(one, two):
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-5)
    for name, grad in one[2].items():
        np.testing.assert_allclose(grad, two[2][name], atol=1e-5 * np.abs(two[2][name]).max() + 1e-8, err_msg=name)


def test_trap_03_loss_does_not_depend_on_the_split(run_kd):
    """4 rows at once, or one by one as micro-batches: one loss, one sum of metrics, one gradient."""
    samples = samples_of(14)
    weight = 1 / sum(int(sample.supervised[1:].sum()) for sample in samples)
    batch, _ = next(one_pass(samples, 32, 16, RandomTeacher(), weight))
    used = int((batch.segment_ids_BL > 0).any(1).sum())
    assert used > 3
    arrays = [
        getattr(batch, name)[:4] for name in PackedBatch.__dataclass_fields__ if name not in ("tokens", "supervised")
    ]
    whole = run_kd(PackedBatch(*arrays))
    assert_same(added([run_kd(PackedBatch(*(a[row : row + 1] for a in arrays))) for row in range(4)]), whole)
    assert whole[0] == pytest.approx(weight * (0.4 * whole[1][0] + 0.6 * whole[1][1]), rel=1e-5)


def test_trap_03_packed_and_alone_give_the_same_loss(run_kd):
    """Samples that share a row count exactly as they do with a row each."""
    samples, weight = samples_of(6, seed=1), 0.01
    packed, _ = next(one_pass(samples, 32, 4, RandomTeacher(), weight))
    assert packed.segment_ids_BL.max() > 1
    alone = [next(one_pass([sample], 32, 4, RandomTeacher(), weight))[0] for sample in samples]
    assert_same(added([run_kd(batch) for batch in alone]), run_kd(packed))


def test_parameters_keep_the_names_of_the_model(model):
    network = LossNetwork(model, ObjectiveOptions(), False)
    assert [p.name for p in network.trainable_params()] == [p.name for p in model.trainable_params()]


def held_out(*sums):
    """held_out_loss over batches whose (cross-entropy, tokens) sums are given."""
    left = iter(sums)

    def network(*tensors):
        ce, tokens = next(left)
        return None, SimpleNamespace(asnumpy=lambda: np.array([ce, *[0.0] * (len(METRICS) - 2), tokens], np.float32))

    batches = [table_batch(make_case(0, 2, 5, 2, 1.0, 1.0))] * len(sums)
    return held_out_loss(network, batches, "held")


def test_held_out_loss_is_a_mean_over_tokens():
    assert held_out((6.0, 1), (0.0, 2)) == {"loss": 2.0, "perplexity": pytest.approx(math.exp(2.0)), "tokens": 3}
    assert held_out((4000.0, 4))["perplexity"] == math.exp(700.0)


@pytest.mark.parametrize("ce", [math.nan, math.inf])
def test_held_out_loss_that_is_not_finite_is_none(ce):
    assert held_out((1.0, 2), (ce, 3)) == {"loss": None, "perplexity": None, "tokens": 5}


@pytest.mark.parametrize("sums", [[], [(0.0, 0)]])
def test_held_out_loss_needs_a_supervised_token(sums):
    with pytest.raises(UserError, match="no supervised token in the held-out set 'held'"):
        held_out(*sums)

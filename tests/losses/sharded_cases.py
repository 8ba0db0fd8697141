"""Cases of a vocabulary that ranks share, and what a rank's results are off by. Legend: `losses/vocab_parallel.py`."""

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindspore_impl import runtime
from mindspore_impl.losses.fused_linear import ChunkLoop, FusedLinear, Rows
from mindspore_impl.losses.objective import LossNetwork
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.losses.vocab_parallel import Shard, vocab_parallel
from mindspore_impl.ops.topk_distill_composed import WholeVocabulary
from tests.losses.teacher_cases import Case, make_case, row_error

WIDTH = 8


class Setting(NamedTuple):
    """One graph; its data vary by scale and seed."""

    divergence: str = "forward_kl"
    support: str = "tail_bucket"
    temperature: float = 1.0
    count: int = 7  # rows of all ranks together
    borders: tuple[int, ...] = (0, 20, 43)
    top_k: int = 5
    pad: int = 0
    own_rows: bool = False
    rows_at_once: int = 100

    @property
    def options(self) -> ObjectiveOptions:
        return ObjectiveOptions(0.6, None, self.divergence, self.support, self.temperature)


def exact(rng, shape: tuple[int, int], size: float) -> np.ndarray:
    """Random float32 of few bits, so that logits are exact however a product of matrices is summed."""
    step = 2.0 ** np.ceil(np.log2(size / 256))
    return (np.round(rng.standard_normal(shape) * size / step) * step).astype(np.float32)


def make(setting: Setting, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray, Case]:
    """-> hidden_ND, lm_head_VD, and the case of their logits, with ids at the shards' borders in support and labels."""
    rng, vocab = np.random.default_rng(seed), setting.borders[-1]
    edges = {0, vocab - 1, *setting.borders[1:-1], *(border - 1 for border in setting.borders[1:-1])}
    edges = tuple(rng.permutation([edge for edge in edges if 0 <= edge < vocab]))
    case = make_case(
        seed, setting.count, vocab, setting.top_k, scale, setting.temperature, ("teacher", "random")[seed % 2],
        mode="sampled" if setting.support == "sampled" else "top_k", pad=setting.pad, edges=edges[: setting.top_k],
    )  # fmt: skip
    case.target_ids_N[1::2] = np.resize(edges, len(case.target_ids_N[1::2]))
    hidden_ND = exact(rng, (setting.count, WIDTH), scale / WIDTH**0.5)
    lm_head_VD = exact(rng, (vocab, WIDTH), 1.0)
    logits_NV = hidden_ND @ lm_head_VD.T
    np.testing.assert_array_equal(logits_NV, hidden_ND.astype(np.float64) @ lm_head_VD.T.astype(np.float64))
    return hidden_ND, lm_head_VD, case._replace(logits_NV=logits_NV)


class Results(NamedTuple):
    """What a Cell of FusedLinear's form gives, with both gradients, as NumPy arrays."""

    loss: np.ndarray
    ce_N: np.ndarray
    kd_N: np.ndarray
    diagnostics_N4: np.ndarray
    hidden_grad_ND: np.ndarray
    lm_head_grad_VD: np.ndarray


def differentiated(cell: FusedLinear):
    """run(hidden_ND, lm_head_VD, inputs) -> Results, by automatic differentiation as in a training step."""
    step = ms.value_and_grad(cell, (0, 1), has_aux=True)  # compiled once

    def run(hidden_ND, lm_head_VD, inputs) -> Results:
        tensors = [Tensor(np.ascontiguousarray(array)) for array in (hidden_ND, lm_head_VD, *inputs)]
        outputs, grads = step(*tensors)
        loss, ce_N, kd_N, diagnostics_4N = (out.asnumpy() for out in outputs[:4])
        return Results(loss, ce_N, kd_N, diagnostics_4N.T, *(grad.asnumpy() for grad in grads))

    return run


def reference(hidden_ND, lm_head_VD, case: Case, options: ObjectiveOptions) -> Results:
    """The float64 oracle's."""
    found = objective(*case, options)
    on_N = (case.loss_weight_N != 0).astype(np.float64)
    diagnostics_N4 = np.stack(list(found.diagnostics.values()), 1) * on_N[:, None]
    grads = found.grad_NV @ lm_head_VD, found.grad_NV.T @ hidden_ND
    return Results(found.loss, found.ce_N * on_N, found.kd_N * on_N, diagnostics_N4, *grads)


def of_rank(whole: Results, shard: Shard, rows: slice) -> Results:
    """What is a rank's of the results of one process: its rows of all but the loss, its ids of lm_head's gradient."""
    return Results(whole.loss, *(rows_N[rows] for rows_N in whole[1:5]), shard.cut(whole.lm_head_grad_VD))


def errors(got: Results, expected: Results, temperature: float) -> dict[str, float]:
    """Largest errors relative to the row, with floors where a divergence or a gradient loses its digits."""
    floors = (1e-6, 0.02 * temperature**2, 0.1, 0.02, 0.02)
    pairs = zip(Results._fields[1:], got[1:], expected[1:], floors, strict=True)
    found = {name: row_error(one, other, floor) for name, one, other, floor in pairs}
    return found | {"loss": float(abs(got.loss - expected.loss) / max(abs(expected.loss), 1.0))}


def shared_errors(setting: Setting, scales: tuple[float, ...], seeds: range) -> dict[str, dict]:
    """This rank's results of one graph against the oracle, and against the composed operator in one process."""
    shard = Shard(setting.borders, runtime.rank())
    mine = setting.count // shard.ranks
    rows = slice(shard.rank * mine, (shard.rank + 1) * mine) if setting.own_rows else slice(None)
    runtime.logits_elements = lambda: setting.rows_at_once * shard.rows
    shared = differentiated(vocab_parallel(setting.options, True, shard, own_rows=setting.own_rows))
    rows_of_one = Rows(setting.options, True, True, WholeVocabulary())  # the composed operator, whatever is installed
    alone = differentiated(FusedLinear(setting.options, True, chunks=ChunkLoop(rows_of_one, True)))
    found = {}
    for scale in scales:
        for seed in seeds:
            hidden_ND, lm_head_VD, case = make(setting, scale, seed)
            got = shared(hidden_ND[rows], shard.cut(lm_head_VD), [array[rows] for array in case[1:]])
            oracle = reference(hidden_ND, lm_head_VD, case, setting.options)
            for name, whole in (("oracle", oracle), ("composed", alone(hidden_ND, lm_head_VD, case[1:]))):
                expected = of_rank(whole, shard, rows)
                if setting.own_rows:  # the ranks' losses add up to that of all
                    total = ms.ops.AllReduce()(Tensor(got.loss.reshape((1,)))).asnumpy()[0]
                    off = abs(total - whole.loss) / max(abs(whole.loss), 1.0)
                    found[f"{name} {scale} {seed} sum"] = {"loss": float(off)}
                    expected = expected._replace(loss=_own_loss(expected, case.loss_weight_N[rows], setting.options))
                found[f"{name} {scale} {seed}"] = errors(got, expected, setting.temperature)
            runtime.reset_watchdog()
    return found


def _own_loss(results: Results, weight_N, options: ObjectiveOptions) -> float:
    terms_N = (1 - options.kd_weight) * results.ce_N + options.kd_weight * results.kd_N
    return np.float64((weight_N * terms_N).sum())


class Lookup(nn.Cell):
    """A model whose hidden states are rows of a table."""

    def __init__(self, table_VD, lm_head):
        super().__init__()
        self.table = Parameter(Tensor(table_VD), name="table")
        self.lm_head_weight = Parameter(Tensor(lm_head), name="head")

    def hidden(self, input_ids_BL, position_ids_BL, segment_ids_BL):
        return self.table[input_ids_BL]


def network_results(setting: Setting, seed: int, shard: Shard) -> list:
    """[loss, metrics, gradient of the table, gradient of lm_head] of LossNetwork over this rank's rows."""
    hidden_ND, lm_head_VD, case = make(setting, 1.0, seed)
    rows = np.arange(setting.count, dtype=np.int32).reshape((shard.ranks, -1))[shard.rank]
    model = Lookup(hidden_ND, shard.cut(lm_head_VD))
    network = LossNetwork(model, setting.options, True, rows=vocab_parallel(setting.options, True, shard))
    ones_N = np.ones_like(case.target_ids_N)
    fields = [case.target_ids_N, case.loss_weight_N, ones_N, ones_N, *case[3:]]
    inputs = [Tensor(rows[None]), *(Tensor(field[rows][None]) for field in fields)]
    parameters = ms.ParameterTuple([model.table, model.lm_head_weight])
    outputs, grads = ms.value_and_grad(network, None, parameters, has_aux=True)(*inputs)
    return [array.asnumpy().tolist() for array in (*outputs, *grads)]


class _Square(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ms.ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x * x)


def derivative_of_all_reduce() -> float:
    """MindSpore's d/dx of the sum over ranks of x * x, at x = 1 on every rank."""
    return float(ms.grad(_Square())(Tensor(1.0, ms.float32)).asnumpy())

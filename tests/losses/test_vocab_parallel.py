"""The vocabulary shared by ranks: every rank's results are those of one process, its gradients their share."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindspore_impl import runtime
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.losses.vocab_parallel import Collectives, Shard, even_borders, join, vocab_parallel
from tests.losses.sharded_cases import Results, Setting, errors, make, of_rank, reference
from tests.losses.teacher_cases import PAIRS, falling_tails
from tests.losses.vocab_parallel_ranks import NETWORK

pytestmark = pytest.mark.usefixtures("ms_runtime")
RANKS = Path(__file__).parent / "vocab_parallel_ranks.py"
TOLERANCE = 1e-5


class Meeting:
    """Collectives of ranks that are threads of this process, of which one runs at a time."""

    def __init__(self, ranks: int):
        self.turn = threading.Lock()
        self.arrive, self.values = threading.Barrier(ranks, timeout=60), [None] * ranks

    def of_rank(self, rank: int) -> Collectives:
        def meet(combine):
            def collective(x):
                self.values[rank] = x.asnumpy()
                self.turn.release()
                self.arrive.wait()
                result = combine(self.values)
                self.arrive.wait()
                self.turn.acquire()
                return Tensor(result)

            return collective

        return Collectives(meet(sum), meet(np.concatenate))


def together(ranks: int, work) -> list:
    """[work(rank, Collectives) of every rank]."""
    meeting = Meeting(ranks)

    def run(rank: int):
        with meeting.turn:
            return work(rank, meeting.of_rank(rank))

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


@pytest.fixture
def eager():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def simulate(setting: Setting, hidden_ND, lm_head_VD, case, options=None, **more) -> list[Results]:
    """The results of every rank, without processes: the same Cells, operator by operator."""
    ranks = len(setting.borders) - 1
    mine = setting.count // ranks

    def work(rank: int, group: Collectives) -> Results:
        shard = Shard(setting.borders, rank)
        rows = slice(rank * mine, (rank + 1) * mine) if setting.own_rows else slice(None)
        cell = vocab_parallel(options or setting.options, shard=shard, own_rows=setting.own_rows, group=group, **more)
        inputs = [Tensor(array[rows]) for array in (hidden_ND, *case[1:])]
        outputs = cell(inputs[0], Tensor(shard.cut(lm_head_VD)), *inputs[1:])
        loss, ce_N, kd_N, diagnostics_4N, *grads = (output.asnumpy() for output in outputs)
        return Results(loss, ce_N, kd_N, diagnostics_4N.T, *(grads + [None] * (2 - len(grads))))

    return together(ranks, work)


def check_three_ranks(divergence, support, temperature, scale, monkeypatch):
    setting = Setting(divergence, support, temperature, 6, (0, 15, 19, 43), pad=2, rows_at_once=4)
    monkeypatch.setattr(runtime, "logits_elements", lambda: setting.rows_at_once * 24)
    hidden_ND, lm_head_VD, case = make(setting, scale, 1)
    whole = reference(hidden_ND, lm_head_VD, case, setting.options)
    for rank, got in enumerate(simulate(setting, hidden_ND, lm_head_VD, case, with_teacher=True)):
        expected = of_rank(whole, Shard(setting.borders, rank), slice(None))
        found = errors(got, expected, temperature)
        assert max(found.values()) <= TOLERANCE, (rank, scale, found)


def test_three_ranks_give_what_the_oracle_gives(eager, monkeypatch):
    check_three_ranks("jsd", "tail_bucket", 2.0, 8.0, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_three_ranks_give_what_the_oracle_gives_everywhere(divergence, support, temperature, eager, monkeypatch):
    for scale in (1.0, 30.0):
        check_three_ranks(divergence, support, temperature, scale, monkeypatch)


def test_the_tail_keeps_its_digits(eager):
    """Tails of 1e-4 down to 1e-30, summed over both ranks, where 1 - sum has no correct digit in float32."""
    case = falling_tails()
    setting = Setting(count=7, borders=(0, 200, 423))
    options = ObjectiveOptions(1.0)
    whole = objective(*case, options)
    hidden_ND, lm_head_VD = np.eye(7, dtype=np.float32), np.ascontiguousarray(case.logits_NV.T)
    for got in simulate(setting, hidden_ND, lm_head_VD, case, options, with_teacher=True, head_gradient=False):
        np.testing.assert_allclose(got.kd_N, whole.kd_N, rtol=1e-6)


def test_more_teacher_ids_than_a_rank_holds(eager):
    setting = Setting(count=3, borders=(0, 3, 11), top_k=10)
    hidden_ND, lm_head_VD, case = make(setting, 8.0, 0)
    whole = reference(hidden_ND, lm_head_VD, case, setting.options)
    for got in simulate(setting, hidden_ND, lm_head_VD, case, with_teacher=True):
        np.testing.assert_allclose(got.kd_N, whole.kd_N, rtol=1e-5)


def test_evaluation_without_a_teacher(eager):
    """Each rank has rows of its own; no gradient is made."""
    setting = Setting(count=6, borders=even_borders(43, 2), own_rows=True)
    hidden_ND, lm_head_VD, case = make(setting, 8.0, 0)
    whole = objective(*case[:3], None, None, None, ObjectiveOptions())
    ranks = simulate(setting, hidden_ND, lm_head_VD, case, ObjectiveOptions(), with_teacher=False, gradient=False)
    ce_N = np.concatenate([got.ce_N for got in ranks])
    np.testing.assert_allclose(ce_N, whole.ce_N * (case.loss_weight_N != 0), rtol=1e-5, atol=1e-6)
    assert sum(got.loss for got in ranks) == pytest.approx(whole.loss, rel=1e-5)


@pytest.mark.parametrize(("vocab", "ranks"), [(43, 2), (5, 4), (153376, 8), (3, 1)])
def test_shards_cover_the_vocabulary(vocab, ranks):
    borders = even_borders(vocab, ranks)
    lm_head_VD = np.random.default_rng(0).standard_normal((vocab, 2)).astype(np.float32)
    parts = [Shard(borders, rank).cut(lm_head_VD) for rank in range(ranks)]
    assert {len(part) for part in parts} == {-(-vocab // ranks)}
    np.testing.assert_array_equal(join(parts, borders), lm_head_VD)


@pytest.mark.parametrize(("borders", "rank"), [((0, 4, 2), 0), ((1, 4), 0), ((0, 4), 1), ((0,), 0)])
def test_borders_without_meaning_are_refused(borders, rank):
    with pytest.raises(ValueError, match="do not share a vocabulary"):
        Shard(borders, rank)


def test_a_head_of_another_size_is_refused(eager):
    setting = Setting()
    hidden_ND, lm_head_VD, case = make(setting, 1.0, 0)
    cell = vocab_parallel(setting.options, True, Shard(setting.borders, 0), group=Collectives(None, None))
    with pytest.raises(ValueError, match="the same number of lm_head's rows"):
        cell(*(Tensor(array) for array in (hidden_ND, lm_head_VD, *case[1:])))


def test_two_ranks_train_as_one(two_ranks):
    """Real collectives and automatic differentiation: LossNetwork where each rank has rows and ids of its own."""
    found = two_ranks(RANKS, "network")
    parts = [[np.array(part) for part in result["parts"]] for result in found]
    hidden_ND, lm_head_VD, case = make(NETWORK, 1.0, 0)
    whole = reference(hidden_ND, lm_head_VD, case, NETWORK.options)
    rows_N6 = np.concatenate((whole.ce_N[:, None], whole.kd_N[:, None], whole.diagnostics_N4), 1)
    metrics_M = np.append(rows_N6.sum(0), (case.loss_weight_N != 0).sum())
    for number, expected in enumerate((whole.loss, metrics_M, whole.hidden_grad_ND)):  # a training step adds these up
        np.testing.assert_allclose(parts[0][number] + parts[1][number], expected, 1e-5, 1e-6)
    lm_head_grad_VD = join([parts[rank][3] for rank in range(2)], NETWORK.borders)
    np.testing.assert_allclose(lm_head_grad_VD, whole.lm_head_grad_VD, 1e-5, 1e-6)
    # Why nothing is differentiated through a collective: d(x * x) is 2 x, and MindSpore counts it for every rank.
    assert [result["derivative"] for result in found] == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("divergence", "support"), PAIRS)
def test_two_ranks_on_the_grid(divergence, support, two_ranks):
    (two_ranks.folder / "pair").write_text(json.dumps([divergence, support]))
    for rank, result in enumerate(two_ranks(RANKS, "grid")):
        assert len(result) == 3
        for setting, cases in result.items():
            for name, values in cases.items():
                assert max(values.values()) <= TOLERANCE, (rank, setting, name, values)

"""Memory traffic and vector work of the Ascend C kernel, counted by the host emulator, and modelled times.

Emulated: kernels/topk_distill_loss in bf16, K = 64, temperature 1, loss and gradient in one launch. Traffic is in units
of the logits tensor, vector work in repeats (256 bytes of the widest operand) per 64 elements.
Modelled: a roofline of the peaked case, memory time (counted bytes over bandwidth) and vector time (two cycles a repeat
over all vector cores), without launch, scalar work and the L2 cache. Nothing here ran on an NPU.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import objective
from mindspore_impl.model.tensor_file import from_bfloat16, to_bfloat16
from mindspore_impl.speed.common import Row, compared

VOCAB, TOP_K, ROWS, TOKENS = 153_376, 64, 4, 4096
CE_WEIGHT, KD_WEIGHT = 0.3, 0.7
ELEMENT_BYTES, LANES, CYCLES_A_REPEAT = 2, 64, 2
DEVICE = "ascend910b, emulated"
KERNEL = Path(__file__).resolve().parents[2] / "kernels" / "topk_distill_loss" / "emulated.py"
TYPICAL = "peaked"
CASES = (TYPICAL, "randn, scale 8", "randn, scale 30")
SMALL = 0.05  # repeats per 64 elements: instructions below it are listed together
# Name, the tiling's split (cores a row), cores of the emulated launch.
VARIANTS = (("streaming", 1, 2), ("on chip over two cores", 2, 4))


@dataclass(frozen=True)
class Peer:
    """Another way to do the same: tensors read and written, repeats per 64 elements."""

    name: str
    reads: float
    writes: float
    repeats: float

    @property
    def bytes_an_element(self) -> float:
        """Global-memory traffic per logit, in bytes."""
        return (self.reads + self.writes) * ELEMENT_BYTES


# Counted from the published sources at this vocabulary in bf16.
VENDOR = Peer("hicann/ops-nn cross_entropy_loss + _grad (its repeats: forward alone)", 4, 2, 9.31)
SKELETON = Peer("plain fused two-pass skeleton (online max and sum, then gradient and patches)", 2, 1, 9.06)
PEERS = (VENDOR, SKELETON)


@dataclass(frozen=True)
class Soc:
    """Vector cores, their clock in Hz, and GM bandwidth in bytes/s; 32 bytes a cycle is what one core can take."""

    name: str
    vector_cores: int
    clock: float
    bandwidth: float = 1.6e12

    def milliseconds(self, elements: int, bytes_an_element: float, repeats: float) -> tuple[float, float]:
        """(memory, vector): times to move all bytes through global memory, and of `repeats` per 64 elements."""
        moved = elements * bytes_an_element / min(self.bandwidth, 32 * self.vector_cores * self.clock)
        return 1e3 * moved, 1e3 * elements / LANES * repeats * CYCLES_A_REPEAT / (self.vector_cores * self.clock)


SOCS = (Soc("910B1", 48, 1.85e9), Soc("910B2", 48, 1.80e9), Soc("910B3", 40, 1.80e9), Soc("910B4", 40, 1.50e9))


def rows(rows: int = ROWS, vocab: int = VOCAB) -> list[Row]:
    """Emulate and check the numbers; what was counted first, then what follows from it."""
    emulated = load_kernel()
    found, modelled = [], []
    for case in CASES:
        inputs = make_inputs(case, rows, vocab)
        for variant, split, cores in VARIANTS:
            launch = launched(emulated, inputs, split, cores)
            check_numbers(inputs, launch)
            work = counted(launch.counters["total"], rows, vocab)
            found += counted_rows(f"{case}, {variant}", work)
            if case == TYPICAL:
                modelled += modelled_rows(variant, work, vocab)
    return [*found, *modelled]


def load_kernel(path: Path = KERNEL):
    """The module that runs the kernel through the emulator. Raises UserError outside a clone."""
    if not path.is_file():
        raise UserError(
            f"{path}: the Ascend C kernel is not beside the package; run the benchmark ascend_traffic in a clone"
        )
    spec = importlib.util.spec_from_file_location("topk_distill_loss_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_inputs(case: str, rows: int, vocab: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Logits (float32) and a teacher of K ids a row; labels and ids lie partly on the student's own best ids.

    `peaked` is what a trained model gives: a body of scale 2.5 and, 12 to 20 above its mean, a few likely tokens.
    """
    rng = np.random.default_rng(seed)
    top_k = min(TOP_K, vocab // 2)
    logits_NV = rng.standard_normal((rows, vocab))
    if case == "peaked":
        logits_NV *= 2.5
        for row in logits_NV:
            likely = rng.permutation(vocab)[:20]
            row[likely] = np.linspace(20, 12, 20)
    else:
        logits_NV *= float(case.rsplit(" ", 1)[1])
    best_NK = np.argsort(-logits_NV, axis=1)[:, :top_k].astype(np.int32)
    ids_NK = best_NK.copy()
    for ids in ids_NK[1::2]:  # every other teacher disagrees: its ids may lie anywhere
        ids[:] = rng.permutation(vocab)[:top_k]
    ids_NK = rng.permuted(ids_NK, axis=1)
    mass_NJ = rng.dirichlet(np.full(top_k + 1, 0.3), rows) + 1e-6
    logp_NJ = np.log(mass_NJ / mass_NJ.sum(1, keepdims=True))
    labels_N = rng.integers(0, vocab, rows)
    labels_N[::2] = best_NK[::2, 0]
    return {
        "logits_NV": logits_NV.astype(np.float32),
        "target_ids_N": labels_N.astype(np.int32),
        "teacher_ids_NK": ids_NK,
        "teacher_logp_NK": logp_NJ[:, :-1].astype(np.float32),
        "teacher_tail_logp_N": logp_NJ[:, -1].astype(np.float32),
        "row_weight_N": np.ones(rows, np.float32),
    }


def launched(emulated, inputs: dict[str, np.ndarray], split: int, cores: int):
    """One emulated launch on the bf16 logits. Raises UserError where there is no compiler, or a rule is broken."""
    bits = inputs | {"logits_NV": to_bfloat16(inputs["logits_NV"])}
    try:
        return emulated.launch(**bits, ce_weight=CE_WEIGHT, kd_weight=KD_WEIGHT, cores=cores, split=split)
    except emulated.emulate.EmulatorError as error:
        raise UserError(f"ascend_traffic: {error}") from error


def check_numbers(inputs: dict[str, np.ndarray], launch) -> None:
    """Counting a kernel that computes something else would mean nothing: compare with the float64 oracle."""
    rounded_NV = from_bfloat16(to_bfloat16(inputs["logits_NV"]))
    expected = objective(
        rounded_NV.astype(np.float64), inputs["target_ids_N"], inputs["row_weight_N"],
        inputs["teacher_ids_NK"], inputs["teacher_logp_NK"], inputs["teacher_tail_logp_N"],
        ObjectiveOptions(kd_weight=KD_WEIGHT, ce_weight=CE_WEIGHT),  # forward_kl, tail_bucket, temperature 1
    )  # fmt: skip
    gradient_NV = from_bfloat16(launch.logits_NV)
    for ours, reference in ((launch.ce_N, expected.ce_N), (launch.kd_N, expected.kd_N)):
        if not np.allclose(ours, reference, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"ascend_traffic: the emulated losses {ours} are not the oracle's {reference}")
    worst = np.abs(gradient_NV - expected.grad_NV).max() / np.abs(expected.grad_NV).max()
    if worst > 2.0**-8:  # half a unit in the last place of bf16
        raise RuntimeError(f"ascend_traffic: the emulated gradient is off by {worst:.1e} of its largest entry")


@dataclass(frozen=True)
class Work:
    """Counts of a launch, by element or by row."""

    reads: float  # of the logits, in units of the tensor
    writes: float
    bytes_an_element: float  # all of global memory, everything included
    repeats: dict[str, float]  # per 64 elements, by instruction
    scalar: dict[str, float]  # a row, by kind


def counted(total: dict, rows: int, vocab: int) -> Work:
    """Normalise the emulator's totals."""
    elements = rows * vocab
    logits = total["gm"]["logits"]
    moved = sum(traffic["read_bytes"] + traffic["written_bytes"] for traffic in total["gm"].values())
    return Work(
        reads=logits["read_bytes"] / (elements * ELEMENT_BYTES),
        writes=logits["written_bytes"] / (elements * ELEMENT_BYTES),
        bytes_an_element=moved / elements,
        repeats={name: count * LANES / elements for name, count in total["repeats"].items()},
        scalar={name: count / rows for name, count in total["scalar"].items()},
    )


def counted_rows(case: str, work: Work) -> list[Row]:
    """The emulated rows of one case."""
    named = {"source": "emulated", "device": DEVICE}
    repeats = sum(work.repeats.values())
    figures = [("reads", "x the logits", work.reads), ("writes", "x the logits", work.writes)]
    found = [
        compared(case, metric, unit, ours, getattr(peer, metric), peer.name, **named)
        for peer in PEERS
        for metric, unit, ours in figures
    ]
    found += [
        compared(case, "vector repeats", "per 64 elements", repeats, peer.repeats, peer.name, **named) for peer in PEERS
    ]
    large = {name: count for name, count in work.repeats.items() if count >= SMALL}
    alone = [
        *(
            (f"repeats of {name}", "per 64 elements", large[name])
            for name in sorted(large, key=large.get, reverse=True)
        ),
        ("repeats of all others", "per 64 elements", repeats - sum(large.values())),
        *((name, "a row", count) for name, count in work.scalar.items()),
        ("scalar accesses", "a row", sum(work.scalar.values())),
    ]
    return found + [Row(case, metric, unit, ours, **named) for metric, unit, ours in alone]


def modelled_rows(case: str, work: Work, vocab: int) -> list[Row]:
    """The roofline of one case: memory time, vector time and the larger, for TOKENS rows on every SoC."""
    elements, found = TOKENS * vocab, []
    for soc in SOCS:
        named = {"source": "modelled", "device": soc.name}
        where = f"{case}, {TOKENS} tokens on {soc.name}"
        memory, vector = soc.milliseconds(elements, work.bytes_an_element, sum(work.repeats.values()))
        found += [
            Row(where, metric, "ms", value, **named)
            for metric, value in (("memory time", memory), ("vector time", vector))
        ]
        for peer in PEERS:
            theirs = max(soc.milliseconds(elements, peer.bytes_an_element, peer.repeats))
            found.append(compared(where, "larger of both", "ms", max(memory, vector), theirs, peer.name, **named))
    return found

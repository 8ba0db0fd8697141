"""Options of the training objective."""

from dataclasses import dataclass


@dataclass
class ObjectiveOptions:
    """`L = sum_t w_t * [ce_weight * CE(t) + kd_weight * T^2 * D(teacher_t, student_t)]`."""

    kd_weight: float = 0.0  # lambda; 0 in a pure SFT stage
    ce_weight: float | None = None  # null: 1 - kd_weight
    divergence: str = "forward_kl"  # a name of `losses/divergences.py`, or one that a plugin registers
    support: str = "tail_bucket"  # which buckets the divergence sums over: `losses/oracle.py`
    temperature: float = 1.0  # must equal the temperature of the store

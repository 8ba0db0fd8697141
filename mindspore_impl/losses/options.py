"""Options of the training objective."""

from dataclasses import dataclass


@dataclass
class ObjectiveOptions:
    """`L = sum_t w_t * [ce_weight * CE(t) + kd_weight * T^2 * D(teacher_t, student_t)]`."""

    kd_weight: float = 0.0  # weight of the divergence, lambda; 0: cross-entropy alone
    ce_weight: float | None = None  # weight of the cross-entropy; null: 1 - kd_weight, on a student's own rollouts 0
    divergence: str = "forward_kl"  # forward_kl, reverse_kl, jsd, or one that a plugin registers
    support: str = "tail_bucket"  # which ids it covers: tail_bucket, renormalised, truncated, sampled
    temperature: float = 1.0  # must equal the temperature of the store

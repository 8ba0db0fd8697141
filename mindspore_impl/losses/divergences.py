"""Registry of the divergences D(p, q) between two distributions over the same I buckets. Imports no MindSpore.

Each has a float64 NumPy oracle. Built-in ones are part of every backend; others run in the composed operator.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.ops.divergence_codes import DIVERGENCES
from mindspore_impl.schema import nearest

_STEP = 1e-5  # of the central differences: errors of about 1e-10 in float64


class Divergence(NamedTuple):
    """oracle(log_p_I, log_q_I) -> (D, dD / d(log q)_I), float64. cell: a factory of the Cell, None when built in."""

    oracle: Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]
    cell: Callable | None = None


# A constant times q_i is left out of the slopes: where the q_i sum to one it changes no gradient.
def _forward_kl(log_p, log_q):
    p = np.exp(log_p)
    return float((p * (log_p - log_q)).sum()), -p


def _reverse_kl(log_p, log_q):
    slope = np.exp(log_q) * (log_q - log_p)
    return float(slope.sum()), slope


def _jsd(log_p, log_q):
    p, q, log_m = np.exp(log_p), np.exp(log_q), np.logaddexp(log_p, log_q) - np.log(2.0)
    value = 0.5 * (p * (log_p - log_m)).sum() + 0.5 * (q * (log_q - log_m)).sum()
    return float(value), 0.5 * q * (log_q - log_m)


_registry = dict(zip(DIVERGENCES, map(Divergence, (_forward_kl, _reverse_kl, _jsd)), strict=True))


def register_divergence(name: str, *, oracle: Callable[[np.ndarray, np.ndarray], float], cell: Callable) -> None:
    """Make `objective.divergence=name` available, on the supports `tail_bucket` and `renormalised`.

    Args:
        name: any name that is not taken yet; importing the same module again is not a conflict.
        oracle: (log_p_I, log_q_I) -> D, float64 NumPy. Defines the value; its gradient is taken by central differences.
        cell: a factory (such as the class) of an nn.Cell with construct(log_p_NI, log_q_NI) -> D_N, float64 on the CPU
            and float32 on Ascend. Rows are independent. A padded bucket has log p and log q near -1e30, and must add 0.
            MindSpore differentiates it with respect to log q.

    Raises UserError when another divergence has the name.
    """

    def with_slope(log_p, log_q):
        steps_II = _STEP * np.eye(log_q.size)
        slope_I = [(oracle(log_p, log_q + step) - oracle(log_p, log_q - step)) / (2 * _STEP) for step in steps_II]
        return float(oracle(log_p, log_q)), np.array(slope_I)

    taken = _registry.get(name)
    place = (cell.__module__, cell.__qualname__)
    if taken and (taken.cell is None or (taken.cell.__module__, taken.cell.__qualname__) != place):
        raise UserError(f"divergence {name!r} is registered already; {cell.__module__} must choose another name")
    _registry[name] = Divergence(with_slope, cell)


def divergence_names() -> tuple[str, ...]:
    """The names of all registered divergences, the built-in ones first."""
    return tuple(_registry)


def find_divergence(name: str, key: str = "objective.divergence") -> Divergence:
    """The divergence of that name. Raises UserError, naming `key` and the nearest name, when it is unknown."""
    if name not in _registry:
        raise UserError(f"{key}={name} is unknown{nearest(name, _registry)}")
    return _registry[name]


def runs_composed(name: str) -> bool:
    """Whether the divergence runs in the composed operator on every device, as no fused kernel knows it."""
    return find_divergence(name).cell is not None


def for_operator(name: str):
    """What `ops.topk_distill` takes for it: the name of a built-in one, a new Cell of another."""
    cell = find_divergence(name).cell
    return name if cell is None else cell()

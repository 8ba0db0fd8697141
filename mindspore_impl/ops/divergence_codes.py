"""Names of the divergences and supports that the fused kernels implement. A name's position is its code in kernels/.

`losses/oracle.py` defines each of them; `losses/divergences.py` adds others. Imports no MindSpore.
"""

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
SUPPORTS = ("tail_bucket", "renormalised", "truncated", "sampled")


def supports_of(divergence: str) -> tuple[str, ...]:
    """The supports on which a divergence is defined: where masses need not sum to the same, the forward KL alone is."""
    return SUPPORTS if divergence == "forward_kl" else SUPPORTS[:2]

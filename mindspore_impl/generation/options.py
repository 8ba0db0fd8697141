"""How text is generated."""

from dataclasses import dataclass


@dataclass
class SamplingOptions:
    """Decoding settings. `temperature: 0` is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    max_new_tokens: int = 96
    batch_size: int = 64  # sequences decoded together

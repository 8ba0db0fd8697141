"""Options of text generation."""

from dataclasses import dataclass, field


@dataclass
class SamplingOptions:
    """Decoding settings. `temperature: 0` is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    repetition_penalty: float = 1.0  # above 1: ids of the prompt and the answer so far become less likely
    stop_ids: list[int] = field(default_factory=list)  # also end an answer, but do not count as its end of turn
    max_new_tokens: int = 96
    batch_size: int = 64  # sequences decoded together

"""Options of rollouts and of the capture of teacher distributions."""

from dataclasses import dataclass
from typing import Literal

from mindspore_impl.schema import option


@dataclass
class RolloutOptions:
    """Which prompts are answered, and how often."""

    samples_per_prompt: int = option(1, low=1)  # answers to each prompt
    limit: int | None = option(None, low=1)  # prompts; null: all
    keep_truncated: bool = True  # keep answers cut by max_new_tokens (their end is not supervised)
    prompts_per_part: int = option(64, low=1, fingerprint=False)  # unit of sharing by ranks and of resuming


@dataclass
class CaptureOptions:
    """What is stored of the teacher's distribution at each supervised position."""

    mode: Literal["top_k", "sampled"] = "top_k"  # top_k: the most likely ids; sampled: ids drawn from the teacher
    top_k: int = option(10, low=1)  # ids stored per position (top_k), or ids drawn (sampled)
    temperature: float = option(1.0, above=0)  # of the teacher's softmax; the objective must have the same
    rows_per_batch: int = option(16, low=1)  # packed rows in one teacher forward pass
    positions_per_shard: int = option(65536, low=1, fingerprint=False)  # supervised positions in a file of the store
    overlong: Literal["error", "drop"] = "error"  # a sample longer than the stage's sequence_length

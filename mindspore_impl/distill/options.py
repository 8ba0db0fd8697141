"""Options of rollouts and of the capture of teacher distributions."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class RolloutOptions:
    """Which prompts are answered, and how often."""

    samples_per_prompt: int = 1
    limit: int | None = None  # prompts; null: all
    keep_truncated: bool = True  # keep answers cut by max_new_tokens (their end is not supervised)
    prompts_per_part: int = 64  # the unit that ranks share and a killed stage resumes at; at least one batch


@dataclass
class CaptureOptions:
    """What is stored of the teacher's distribution at each supervised position."""

    mode: Literal["top_k", "sampled"] = "top_k"
    top_k: int = 10  # ids stored per position (top_k), or ids drawn (sampled)
    temperature: float = 1.0
    rows_per_batch: int = 16  # packed rows in one teacher forward pass
    positions_per_shard: int = 65536
    overlong: Literal["error", "drop"] = "error"  # a sample longer than the stage's sequence_length

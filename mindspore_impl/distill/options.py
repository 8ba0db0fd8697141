"""Student and teacher generations, and the capture of teacher distributions."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class RolloutOptions:
    """Which prompts are answered, and how often."""

    samples_per_prompt: int = 1
    limit: int | None = None  # prompts; null: all
    keep_truncated: bool = True  # keep answers cut by max_new_tokens (their end is not supervised)
    prompts_per_part: int = 64  # what ranks share and a killed stage goes on at; at least one whole batch


@dataclass
class CaptureOptions:
    """What of the teacher's distribution is stored at each supervised position."""

    mode: Literal["top_k", "sampled"] = "top_k"
    top_k: int = 10  # ids stored a position (top_k), or ids drawn (sampled)
    temperature: float = 1.0
    rows_per_batch: int = 16  # packed rows in one teacher forward
    positions_per_shard: int = 65536
    overlong: Literal["error", "drop"] = "error"  # a sample longer than the stage's sequence_length

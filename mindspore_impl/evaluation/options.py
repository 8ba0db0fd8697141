"""What is measured after a stage."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class EvaluationOptions:
    """Sets of `data.sets`: `accuracy` by greedy generation in each set's thinking mode, `perplexity` teacher-forced."""

    accuracy: list[str] = field(default_factory=list)
    perplexity: list[str] = field(default_factory=list)
    limit: int | None = None  # records of each set; null: all
    samples_in_report: int = 8
    max_new_tokens: int = 96
    batch_size: int = 100
    sequence_length: int = 128  # of the packed rows for perplexity
    rows: int = 16


@dataclass
class ScoreOptions:
    """How the loss of each record is measured."""

    rows_per_batch: int = 16  # packed rows in one forward pass
    records_per_part: int = 4096  # a killed stage goes on at the next part of this many records
    overlong: Literal["error", "drop"] = "error"  # a sample longer than the stage's sequence_length

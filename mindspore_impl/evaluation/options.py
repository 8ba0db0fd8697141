"""Options of evaluation."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class AskOptions:
    """How a benchmark is asked. null: the task's default.

    form: `chat` renders a question as a user's turn, `plain` as text to continue; `auto` is plain for multiple choice
    and the task's own form for completions. thinking: mode of chat turns; the answer after it is scored.
    """

    shots: int | None = None
    limit: int | None = None  # of questions, from the first
    form: Literal["auto", "chat", "plain"] = "auto"
    thinking: Literal["reasoning", "fast"] = "fast"
    max_new_tokens: int | None = None
    samples: int = 1  # answers per question, whose scores are averaged; several need a temperature
    temperature: float = 0.0


@dataclass
class BenchmarkOptions(AskOptions):
    """A benchmark to measure: its published file or folder."""

    path: str = ""
    task: str | None = None  # of `evaluation/tasks`; null: the name of the entry


@dataclass
class EvaluationOptions:
    """What is measured. Lists name sets of `data.sets`.

    `accuracy` by greedy generation in each set's thinking mode, `perplexity` teacher-forced, `teacher_kl` the
    teacher-forced KL(teacher || model). `benchmarks`: entries by name.
    """

    accuracy: list[str] = field(default_factory=list)
    perplexity: list[str] = field(default_factory=list)
    teacher_kl: list[str] = field(default_factory=list)
    teacher: str | None = None  # of teacher_kl: a stage, or the path of weights
    teacher_model: str | None = None  # an entry of `models`; null: that of the stage
    benchmarks: dict[str, BenchmarkOptions] = field(default_factory=dict)
    limit: int | None = None  # records of each set; null: all
    samples_in_report: int = 8
    max_new_tokens: int = 96
    batch_size: int = 100
    sequence_length: int = 128  # of the packed rows for perplexity and teacher_kl
    rows: int = 16


@dataclass
class ScoreOptions:
    """How the loss of each record is measured."""

    rows_per_batch: int = 16  # packed rows in one forward pass
    records_per_part: int = 4096  # records per resumable part
    overlong: Literal["error", "drop"] = "error"  # a sample longer than the stage's sequence_length

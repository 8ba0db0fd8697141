"""Options of evaluation."""

from dataclasses import dataclass, field
from typing import Literal

from mindspore_impl.schema import option


@dataclass
class AskOptions:
    """How a benchmark is asked. null: the task's default."""

    shots: int | None = option(None, low=0)  # solved examples before a question
    limit: int | None = option(None, low=1)  # of questions, from the first
    form: Literal["auto", "chat", "plain"] = "auto"  # a chat turn, text to continue, or the task's own form
    thinking: Literal["reasoning", "fast"] = "fast"  # mode of chat turns
    max_new_tokens: int | None = option(None, low=1)  # tokens of an answer
    samples: int = option(1, low=1)  # answers per question, whose scores are averaged; several need a temperature
    temperature: float = option(0.0, low=0)  # of sampling; 0: greedy


@dataclass
class BenchmarkOptions(AskOptions):
    """A benchmark to measure: its published file or folder."""

    path: str = option("", artifact="file")  # the published file or folder
    task: str | None = None  # of `evaluation/tasks`; null: the name of the entry


@dataclass
class EvaluationOptions:
    """What is measured on which sets of `data.sets`, and which benchmarks by name."""

    accuracy: list[str] = field(default_factory=list)  # sets answered greedily, in each set's thinking mode
    perplexity: list[str] = field(default_factory=list)  # sets measured teacher-forced
    teacher_kl: list[str] = field(default_factory=list)  # sets on which KL(teacher || model) is measured
    teacher: str | None = option(None, artifact="weights")  # of teacher_kl: a stage or the path of weights
    teacher_model: str | None = None  # an entry of `models`; null: that of the stage
    benchmarks: dict[str, BenchmarkOptions] = field(default_factory=dict)
    limit: int | None = option(None, low=1)  # records of each set; null: all
    samples_in_report: int = option(8, low=0, fingerprint=False)  # answers shown in the report
    max_new_tokens: int = option(96, low=1)  # tokens of an answer
    batch_size: int = option(100, low=1)  # sequences decoded together
    sequence_length: int = option(128, low=2)  # tokens in a packed row of perplexity and teacher_kl
    rows: int = option(16, low=1)  # packed rows in one forward pass


@dataclass
class ScoreOptions:
    """How the loss of each record is measured."""

    rows_per_batch: int = option(16, low=1)  # packed rows in one forward pass
    records_per_part: int = option(4096, low=1, fingerprint=False)  # records per resumable part
    overlong: Literal["error", "drop"] = "error"  # a sample longer than the stage's sequence_length

"""Where records come from and how they become batches."""

from dataclasses import dataclass, field
from typing import Literal

from mindspore_impl.schema import option

ROLLOUTS = "rollouts"  # the mixture name that stands for a distill stage's rollout input


@dataclass
class KeepOptions:
    """The part of a set that is kept, by a number in the meta of each record (after `skip` and `count`)."""

    field: str = "difficulty_loss"  # difficulty_length, difficulty_loss, difficulty_pass_rate, or a number of your own
    low: float | None = None  # null: no limit on this side
    high: float | None = None
    by: Literal["value", "quantile"] = "value"  # quantile: low and high are shares of the set, its easiest record first
    ends: Literal["included", "excluded"] = "included"  # value: whether low and high themselves are kept
    bucket: Literal["easy", "medium", "hard"] | None = None  # a third of the set, in place of low and high


@dataclass
class DatasetOptions:
    """One named set of conversation records (an entry of `data.sets`)."""

    source: Literal["list_programs", "gsm8k", "records", "alpaca", "sharegpt", "prompt_answer"] = "records"
    path: str | None = None  # the file (records: or a stage that writes records); not used by list_programs
    thinking: Literal["reasoning", "fast"] = "fast"  # how an assistant turn is rendered
    split: Literal["train", "validation", "test"] = "train"  # list_programs: disjoint by construction
    skip: int = 0  # leave out this many records at the start
    count: int | None = None  # then take this many; null: all
    noise: float = 0.0  # list_programs: share of labels with one wrong swap that propagates
    operations: int = 3  # list_programs: at most this many operations
    length: int = 5  # list_programs: at most this many letters in the list
    seed: int | None = None  # list_programs: of the sequence; null: the run's
    keep: KeepOptions | None = None  # null: every record


@dataclass
class DataOptions:
    """Files named on the command line, and the sets made of them."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    sets: dict[str, DatasetOptions] = field(default_factory=dict)


@dataclass
class BatchOptions:
    """How one stage draws, packs and batches its samples."""

    mixture: dict[str, float] = option(default_factory=dict, low=0)  # set name: weight, e.g. {reasoning: 3, fast: 1}
    validation: list[str] = field(default_factory=list)  # sets whose loss is measured while training
    sequence_length: int = option(128, low=2)  # tokens in a packed row
    rows: int = option(16, low=1)  # packed rows in the global batch (all ranks, all accumulation steps)
    gradient_accumulation_steps: int = option(1, low=1)  # micro-batches a step on each rank
    overlong: Literal["error", "drop", "split"] = "error"  # a sample longer than sequence_length
    order: Literal["shuffled", "easy_to_hard", "hard_to_easy"] = "shuffled"  # of each epoch anew
    order_by: str = "difficulty_loss"  # the number in each record's meta that `order` goes by
    prefetch: int = option(4, low=0, fingerprint=False)  # steps prepared ahead of the training loop

"""Where records come from and how they become batches."""

from dataclasses import dataclass, field, fields
from typing import Literal

from mindspore_impl.schema import option

ROLLOUTS = "rollouts"  # the mixture name that stands for a distill stage's rollout input


@dataclass
class KeepOptions:
    """The part of a set that is kept, by a number in the meta of each record (after `skip` and `count`)."""

    field: str = "difficulty_loss"  # difficulty_length, difficulty_loss, difficulty_pass_rate, or a number of your own
    low: float | None = None  # null: no limit on this side
    high: float | None = None  # null: no limit on this side
    by: Literal["value", "quantile"] = "value"  # quantile: low and high are shares of the set, its easiest record first
    ends: Literal["included", "excluded"] = "included"  # value: whether low and high themselves are kept
    bucket: Literal["easy", "medium", "hard"] | None = None  # a third of the set, in place of low and high


@dataclass(kw_only=True)
class DatasetOptions:
    """One named set of conversation records (an entry of `data.sets`); `source` says what else it has."""

    source: str  # list_programs, gsm8k, records, alpaca, sharegpt, prompt_answer, stage, or one that a plugin registers
    thinking: Literal["reasoning", "fast"] = "fast"  # how an assistant turn is rendered
    skip: int = option(0, low=0)  # leave out this many records at the start
    count: int | None = option(None, low=1)  # then take this many; null: all
    keep: KeepOptions | None = None  # null: every record


@dataclass(kw_only=True)
class FileSet(DatasetOptions):
    """Records of a file, JSON lines or one JSON array, in the form that `source` names.

    A held-out part is split off the end, the same for every set of a file with the same `holdout`.
    """

    path: str = option(artifact="file")  # its name and content are part of a fingerprint, its folder is not
    holdout: int = option(0, low=0)  # records at the end of the file that no training set holds
    split: Literal["train", "validation"] = "train"  # train: all but the held-out records; validation: these alone


@dataclass(kw_only=True)
class ListProgramsSet(DatasetOptions):
    """Problems of the bundled task, which are generated. The splits have no problem in common."""

    source: str = "list_programs"
    count: int = option(low=1)  # how many are made
    split: Literal["train", "validation", "test"] = "train"  # a hash of the problem decides its split
    noise: float = option(0.0, low=0, high=1)  # share of labels with one wrong swap that propagates
    operations: int = option(3, low=1, high=6)  # at most this many in a program
    length: int = option(5, low=3, high=12)  # at most this many letters in a list
    seed: int | None = option(None, low=0)  # of the sequence; null: the run's


@dataclass(kw_only=True)
class StageSet(DatasetOptions):
    """The records that a stage of the run writes (score, reject)."""

    source: str = "stage"
    stage: str = option(artifact="records")  # name of the score or reject stage

    def in_file(self, path: str) -> FileSet:
        """The same set, read from the stage's record file."""
        shared = {field.name: getattr(self, field.name) for field in fields(DatasetOptions)}
        return FileSet(**shared | {"source": "records", "path": path})


@dataclass
class DataOptions:
    """Values for the command line, which the sets of conf/data refer to, and the sets themselves."""

    train: str | None = option(None, artifact="file")  # file of the training sets
    validation: str | None = option(None, artifact="file")  # file whose last `holdout` records are the validation sets
    test: str | None = option(None, artifact="file")  # file of the test sets
    holdout: int = option(0, low=0)  # records held out of `train` for validation
    sets: dict[str, DatasetOptions] = field(default_factory=dict)


@dataclass
class BatchOptions:
    """How one stage draws, packs and batches its samples."""

    mixture: dict[str, float] = option(default_factory=dict, low=0)  # weight of each set by name; 0: left out
    validation: list[str] = field(default_factory=list)  # sets whose loss is measured while training
    sequence_length: int = option(128, low=2)  # tokens in a packed row
    rows: int = option(8, low=1)  # packed rows of a step over all ranks and micro-batches
    gradient_accumulation_steps: int = option(1, low=1)  # micro-batches a step on each rank
    overlong: Literal["error", "drop", "split"] = "error"  # a sample longer than sequence_length
    order: Literal["shuffled", "easy_to_hard", "hard_to_easy"] = "shuffled"  # of each epoch anew
    order_by: str = "difficulty_loss"  # the number in each record's meta that `order` goes by
    prefetch: int = option(4, low=0, fingerprint=False)  # steps prepared ahead of the training loop

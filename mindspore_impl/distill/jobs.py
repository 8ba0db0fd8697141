"""Requests of a rollout and of a capture; an engine in this process answers them, or an external one on a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_impl.data.packing import fitting
from mindspore_impl.data.rollouts import refuse_copies
from mindspore_impl.data.teacher_store import StoreHeader
from mindspore_impl.distill.options import CaptureOptions, RolloutOptions
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Completion, Sample
from mindspore_impl.text.records import Record
from mindspore_impl.text.tokenizer import Tokenizer


def check_copies(options: RolloutOptions, sampling: SamplingOptions, where: str = "") -> None:
    """Refuse several greedy answers to each prompt. Raises UserError; where: what stands before its keys."""
    keys = f"{where}rollout.samples_per_prompt", f"{where}sampling.temperature"
    refuse_copies(options.samples_per_prompt, sampling.temperature, sampling.top_k, *keys)


@dataclass(frozen=True)
class RolloutJob:
    """Answers to the prompts of `records`, written to `folder`/rollouts.jsonl. Raises UserError for greedy copies."""

    tokenizer: Tokenizer
    records: list[Record]  # all are answered; `options.limit`, which counts one set, is the caller's to apply
    options: RolloutOptions
    sampling: SamplingOptions
    folder: Path
    seed: int  # every sample derives its own
    weights_sha256: str | None = None  # of the model, stored with each rollout
    model: Any = None
    check: Callable[[Record, Completion], bool | None] | None = None  # whether an answer is right; None: unknown
    make_engine: Callable[[Any, Tokenizer], Any] | None = None  # (model, tokenizer); None: `generation.engine.Engine`
    key: str = ""  # of the stage with a dot at its end, for messages

    def __post_init__(self):
        check_copies(self.options, self.sampling, self.key)


@dataclass(frozen=True)
class CaptureJob:
    """A teacher's distribution along `samples`, written to `folder`/store."""

    tokenizer: Tokenizer
    samples: Sequence[Sample]  # equal ones allowed
    options: CaptureOptions
    folder: Path
    seed: int = 0  # of the draws in mode "sampled"
    sequence_length: int | None = None  # tokens of a packed row; None: no limit
    weights_sha256: str | None = None  # of the teacher
    model: Any = None  # the teacher
    key: str = ""  # of the stage with a dot at its end, for messages

    def fitting(self) -> list[Sample]:
        """The samples that a row holds. Raises UserError as `packing.fitting`."""
        keys = (f"{self.key}sequence_length", f"{self.key}capture.overlong=drop")
        return fitting(self.samples, self.sequence_length, self.options.overlong, keys)

    @property
    def header(self) -> StoreHeader:
        """The header of the store."""
        options, vocab_size = self.options, self.tokenizer.vocab_size  # a padded lm_head has more ids: without mass
        made_by = (self.weights_sha256, self.tokenizer.sha256)
        return StoreHeader(*made_by, vocab_size, options.top_k, options.temperature, options.mode)

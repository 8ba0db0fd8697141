"""Requests to an external engine: a teacher or student that runs in another process or on a server."""

from dataclasses import dataclass

from mindspore_impl.distill.options import RolloutOptions
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Sample
from mindspore_impl.text.records import Record
from mindspore_impl.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TopkQuestions:
    """Requests for an external teacher's top K along `samples`. weights_sha256: of the teacher, where known."""

    tokenizer: Tokenizer
    samples: list[Sample]
    top_k: int
    temperature: float
    weights_sha256: str | None = None


@dataclass(frozen=True)
class RolloutQuestions:
    """Requests for answers to the prompts of `records`, with the seeds of an in-process rollout."""

    tokenizer: Tokenizer
    records: list[Record]
    options: RolloutOptions
    sampling: SamplingOptions
    seed: int
    weights_sha256: str | None = None

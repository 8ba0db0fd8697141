"""What can be asked of a teacher or a student that runs elsewhere, whoever it is put to."""

from dataclasses import dataclass

from mindspore_impl.distill.options import RolloutOptions
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Sample
from mindspore_impl.text.records import Record
from mindspore_impl.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TopkQuestions:
    """The teacher's top K along these sequences. weights_sha256: of the teacher, where its files are at hand."""

    tokenizer: Tokenizer
    samples: list[Sample]
    top_k: int
    temperature: float
    weights_sha256: str | None = None


@dataclass(frozen=True)
class RolloutQuestions:
    """Answers to the prompts of these records, with the seeds of an in-process rollout."""

    tokenizer: Tokenizer
    records: list[Record]
    options: RolloutOptions
    sampling: SamplingOptions
    seed: int
    weights_sha256: str | None = None

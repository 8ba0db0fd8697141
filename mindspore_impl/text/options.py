"""Which tokenizer a run uses."""

from dataclasses import dataclass, field


@dataclass
class TokenizerOptions:
    """A SentencePiece model: either an existing file, or a small one trained on the run's own data sets."""

    path: str | None = None  # tokenizer.model; null: train one into <run>/tokenizer/
    vocab_size: int = 512  # of a trained tokenizer
    train_on: list[str] = field(default_factory=list)  # names of data sets whose text it is trained on
    character_coverage: float = 1.0

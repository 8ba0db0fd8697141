"""Which tokenizer a run uses."""

from dataclasses import dataclass, field


@dataclass
class TokenizerOptions:
    """An existing tokenizer file, or a small SentencePiece model trained on the run's own data sets."""

    path: str | None = None  # tokenizer.model or tokenizer.json; null: train one into <run>/tokenizer/
    template: str = "pangu"  # pangu, chatml, smollm2 or a registered one: how conversations are written
    vocab_size: int = 512  # of a trained tokenizer
    train_on: list[str] = field(default_factory=list)  # names of data sets whose text it is trained on
    character_coverage: float = 1.0

"""Options of the tokenizer."""

from dataclasses import dataclass, field

from mindspore_impl.schema import option
from mindspore_impl.text.template import TEMPLATES


@dataclass
class TokenizerOptions:
    """An existing tokenizer file, or a small SentencePiece model trained on the run's own data sets."""

    path: str | None = option(None, artifact="file")  # tokenizer.model or tokenizer.json; null: train one into the run
    template: str = option("pangu", choices=lambda: TEMPLATES)  # how conversations are written; see text/README.md
    vocab_size: int = option(512, low=1)  # of a trained tokenizer
    train_on: list[str] = field(default_factory=list)  # names of data sets whose text it is trained on
    character_coverage: float = option(1.0, above=0, high=1)  # share of the text's characters that are pieces

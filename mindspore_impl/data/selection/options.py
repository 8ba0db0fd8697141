"""The options of the selection's own steps. `of` names the part of a record that a step looks at (Item.text)."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class LengthOptions:
    """Length in characters, and in tokens where a tokenizer is given; null: no limit."""

    of: Literal["conversation", "prompt", "response", "reasoning", "answer"] = "conversation"
    min_characters: int = 1
    max_characters: int | None = None
    tokenizer: str | None = None  # tokenizer.model or tokenizer.json, needed for the two below
    min_tokens: int | None = None
    max_tokens: int | None = None

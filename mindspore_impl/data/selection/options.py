"""The options of the selection steps. `of` names the part of a record that a step reads (see Item.text)."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["conversation", "prompt", "response", "reasoning", "answer"]
Group = Literal["set", "thinking", "task"]
REFUSALS = [
    "i'm sorry, but", "i am sorry, but", "i apologize, but", "i cannot assist", "i can't assist", "i cannot help with",
    "i can't help with", "i'm unable to", "i am unable to", "i cannot fulfill", "i can't fulfill", "i cannot provide",
    "i can't provide", "as an ai", "as a language model", "as a large language model",
    "抱歉", "对不起", "很遗憾，我", "我无法", "我不能提供", "我不能回答", "作为一个人工智能", "作为ai",
    "作为一个语言模型", "作为语言模型",
]  # fmt: skip


@dataclass
class LengthOptions:
    """Length in characters, and in tokens where a tokenizer is given; null: no limit."""

    of: Part = "conversation"
    min_characters: int = 1
    max_characters: int | None = None
    tokenizer: str | None = None  # tokenizer.model or tokenizer.json, needed for the two below
    min_tokens: int | None = None
    max_tokens: int | None = None


@dataclass
class LanguageOptions:
    """Shares of CJK and of Latin letters among all letters, 0 to 1. A text without letters is kept."""

    of: Part = "conversation"
    min_cjk: float = 0.0
    max_cjk: float = 1.0
    min_latin: float = 0.0
    max_latin: float = 1.0
    min_either: float = 0.0  # of the two together


@dataclass
class RepetitionOptions:
    """Shares of repeated lines and of repeated word n-grams, 0 to 1 (a CJK character is a word)."""

    of: Part = "response"
    max_repeated_lines: float = 0.3
    ngram: int = 4  # words
    max_repeated_ngrams: float = 0.4
    min_words: int = 20  # the n-grams of shorter texts are not counted


@dataclass
class BrokenUnicodeOptions:
    """U+FFFD, lone surrogates, control characters and, optionally, text decoded with the wrong character set."""

    of: Part = "conversation"
    mojibake: bool = True


@dataclass
class MissingAnswerOptions:
    """No final answer of the assistant, one that `pattern` does not match, or no reasoning in reasoning mode."""

    pattern: str | None = None  # a regular expression found in the answer, e.g. '\\\\boxed'
    reference: bool = False  # meta.answer is required, as accuracy needs it
    reasoning: bool = True  # a record of reasoning mode must have reasoning


@dataclass
class RefusalOptions:
    """A refusal phrase at the start of the answer."""

    phrases: list[str] | None = None  # in any case; null: REFUSALS above
    within: int = 200  # characters at the start of the answer

    def __post_init__(self):
        if self.phrases is None:  # in full, as they determine the selection
            self.phrases = list(REFUSALS)


@dataclass
class CodeFencesOptions:
    """A code block that is never closed."""

    of: Part = "response"


@dataclass
class CompressionOptions:
    """Compressed size over size (zlib): low where a text repeats itself or earlier records of its group."""

    of: Part = "conversation"
    over: Literal["record", Group] = "record"  # a group: after the last 32 KB kept of it
    min_ratio: float = 0.2
    max_ratio: float | None = None  # 1.0: incompressible; null: no limit
    min_characters: int = 200  # shorter texts are kept


@dataclass
class ExactDuplicatesOptions:
    """Equal text but for case and white space; the first is kept. Memory: a hash and a position per record."""

    of: Part = "conversation"
    apart: Group | None = None  # compare within such groups only; null: all with all


@dataclass
class NearDuplicatesOptions:
    """Jaccard similarity of the word n-grams with a kept record; the first is kept. Needs extra `select`."""

    of: Part = "conversation"
    threshold: float = 0.8
    ngram: int = 3  # words
    permutations: int = 96  # MinHash values per record
    apart: Group | None = None  # compare within such groups only; null: all with all
    seed: int = 1


@dataclass
class DecontaminateOptions:
    """A word n-gram shared with a record of an evaluation set, without case and punctuation."""

    against: list[str]  # sets of the recipe
    of: Part = "conversation"
    evaluation: Part = "prompt"
    ngram: int = 13  # words; a shorter evaluation text is searched for as a whole
    min_words: int = 5  # evaluation texts with fewer words are ignored


@dataclass
class MixtureOptions:
    """Shares of groups, e.g. {reasoning: 3, fast: 1}; a hash of the id decides which records of a group are kept."""

    weights: dict[str, float]
    by: Group = "thinking"
    how: Literal["down", "repeat"] = "down"  # drop from groups that are too large, or repeat records of those too small
    total: int | None = None  # records in all; null: as many as `how` gives
    seed: int = 0


@dataclass
class VerifyOptions:
    """Whether a record's own last answer is right, by its meta.task."""

    unverifiable: Literal["keep", "drop"] = "keep"  # what happens to a record without a task


@dataclass
class RejectionOptions:
    """Rejection sampling: each record's answer is replaced by its shortest right generation."""

    rollouts: str = ""  # a rollout file with several answers to each prompt
    tokenizer: str = ""  # tokenizer.model or tokenizer.json of the model that generated
    template: str | None = None  # null: by the kind of tokenizer


@dataclass
class DifficultyOptions:
    """Writes difficulty_length into meta and, where a rollout file is given, difficulty_pass_rate."""

    tokenizer: str = ""
    template: str | None = None
    rollouts: str | None = None

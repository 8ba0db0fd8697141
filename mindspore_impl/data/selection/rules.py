"""Rules on single records, and the compression ratio, which may depend on earlier ones."""

import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from mindspore_impl import files
from mindspore_impl.data.selection.stream import UNANSWERED, Context, Drop, Group, Item, Part, group_of, rule, step
from mindspore_impl.data.selection.words import CJK, words
from mindspore_impl.schema import option
from mindspore_impl.text.tokenizer import Tokenizer

REFUSALS = files.read_json(Path(__file__).with_name("refusals.json"))
ASCII_CONTROL = bytes(set(range(32)) - set(b"\t\n\r")) + b"\x7f"
BROKEN = re.compile("[\ufffd\ufffe\uffff\ud800-\udfff]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Bytes 80 to BF decoded as Latin-1 and cp1252; A0, a space, follows letters in correct French.
_TAIL = "".join(chr(byte) + bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0) if byte != 0xA0)
MOJIBAKE = re.compile(
    f"[\u00c3\u00c2][{_TAIL}]"  # a Latin letter of two bytes, decoded as two
    f"|\u00e2\u20ac[{_TAIL}\u00a0]?"  # quotes and dashes
    f"|(?:[\u00e3-\u00ed][{_TAIL}\u00a0][{_TAIL}\u00a0]){{2}}"  # two CJK characters
    "|\u951f\u65a4\u62f7|\u70eb\u70eb\u70eb|\u5c6f\u5c6f\u5c6f"  # U+FFFD and uninitialised memory decoded as GBK
)
SUSPECT = re.compile(  # any character that starts a match of the above
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff\ud800-\udfff\u00c2\u00c3\u00e2-\u00ed\u951f\u70eb\u5c6f]"
)
FENCE = re.compile(r"^ {0,3}(?:[-*+>] +|\d+\. +)*(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


@dataclass
class LengthOptions:
    """Length in characters, and in tokens where a tokenizer is given; null: no limit."""

    of: Part = "conversation"
    min_characters: int = 1
    max_characters: int | None = None
    tokenizer: str | None = option(None, artifact="file")  # tokenizer.model or tokenizer.json, for the two below
    min_tokens: int | None = None
    max_tokens: int | None = None

    def __post_init__(self):
        if (self.tokenizer is None) != (self.min_tokens is None and self.max_tokens is None):
            raise ValueError("min_tokens and max_tokens need `tokenizer`, and a tokenizer needs one of them")


@step
def length(options: LengthOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Drops texts that are too short or too long, in characters or in tokens of the given tokenizer."""
    limits = [("characters", len, options.min_characters, options.max_characters)]
    if options.tokenizer:
        tokenizer = Tokenizer.load(Path(options.tokenizer))
        limits.append(("tokens", lambda text: len(tokenizer.encode(text)), options.min_tokens, options.max_tokens))
    for item in items:
        for unit, measure, least, most in limits:
            count = measure(item.text(options.of))
            if least is not None and count < least:
                context.drop(item, Drop(f"{options.of} shorter than {least} {unit}", f"{count} {unit}"))
                break
            if most is not None and count > most:
                context.drop(item, Drop(f"{options.of} longer than {most} {unit}", f"{count} {unit}"))
                break
        else:
            yield item


@dataclass
class LanguageOptions:
    """Shares of CJK and of Latin letters among all letters. A text without letters is kept."""

    of: Part = "conversation"
    min_cjk: float = option(0.0, low=0, high=1)
    max_cjk: float = option(1.0, low=0, high=1)
    min_latin: float = option(0.0, low=0, high=1)
    max_latin: float = option(1.0, low=0, high=1)
    min_either: float = option(0.0, low=0, high=1)  # of the two together

    def __post_init__(self):
        if self.min_cjk > self.max_cjk or self.min_latin > self.max_latin:
            raise ValueError("min_cjk must not be above max_cjk, nor min_latin above max_latin")


@rule
def language(options: LanguageOptions, item: Item) -> Drop | None:
    """Drops texts whose shares of CJK and Latin letters among all letters lie outside the limits."""
    shares = letter_shares(item.text(options.of))
    if shares is None:
        return None
    for name, share, least, most in (
        ("CJK", shares[0], options.min_cjk, options.max_cjk),
        ("Latin", shares[1], options.min_latin, options.max_latin),
        ("CJK or Latin", sum(shares), options.min_either, 1.0),
    ):
        if share < least or share > most:
            return Drop(f"too {'few' if share < least else 'many'} {name} letters", f"{share:.2f}")
    return None


def letter_shares(text: str) -> tuple[float, float] | None:
    """(CJK, Latin) letters over all letters; None for a text without letters."""
    if text.isascii():
        return (0.0, 1.0) if any(map(str.isalpha, text)) else None
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    others, cjk, latin = np.bincount(_letter_kinds()[points], minlength=4)[1:].tolist()
    letters = others + cjk + latin
    return (cjk / letters, latin / letters) if letters else None


@cache
def _letter_kinds() -> np.ndarray:
    """Class of each code point: 0 not a letter, 1 a letter, 2 a CJK letter, 3 a Latin letter."""
    kinds = np.fromiter((chr(point).isalpha() for point in range(sys.maxunicode + 1)), np.uint8)
    for first, last in re.findall("(.)-(.)", CJK):
        kinds[ord(first) : ord(last) + 1] *= 2
    for first, last in ("Az", "\u00aa\u024f", "\u1e00\u1eff"):
        kinds[ord(first) : ord(last) + 1] *= 3
    return kinds


@dataclass
class RepetitionOptions:
    """Shares of repeated lines and of repeated word n-grams, 1 - distinct / all (a CJK character is a word)."""

    of: Part = "response"
    max_repeated_lines: float = option(0.3, low=0, high=1)
    ngram: int = option(4, low=1)  # words
    max_repeated_ngrams: float = option(0.4, low=0, high=1)
    min_words: int = 20  # the n-grams of shorter texts are not counted


@rule
def repetition(options: RepetitionOptions, item: Item) -> Drop | None:
    """Drops texts with too many repeated lines or word n-grams."""
    text, size, most = item.text(options.of), options.ngram, options.max_repeated_ngrams
    if "\n" in text:
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        share = 1 - len(set(lines)) / len(lines) if lines else 0.0
        if share > options.max_repeated_lines:
            return Drop("repeated lines", f"{share:.2f} of {len(lines)} lines")
    found = words(text)
    count = len(found) - size + 1
    # Each distinct word starts a distinct n-gram, but for the last few: often the n-grams need not be counted.
    if len(found) < options.min_words or count < 1 or 1 - (len(set(found)) - size + 1) / count <= most:
        return None
    share = 1 - len(set(zip(*(found[start:] for start in range(size)), strict=False))) / count
    return Drop(f"repeated runs of {size} words", f"{share:.2f} of {count} runs") if share > most else None


@dataclass
class BrokenUnicodeOptions:
    """U+FFFD, lone surrogates, control characters and, optionally, text decoded with the wrong character set."""

    of: Part = "conversation"
    mojibake: bool = True


@rule
def broken_unicode(options: BrokenUnicodeOptions, item: Item) -> Drop | None:
    """Drops texts with replacement or control characters, lone surrogates or mojibake."""
    text = item.text(options.of)
    if text.isascii():
        data = text.encode()
        return Drop("control character") if len(data.translate(None, ASCII_CONTROL)) < len(data) else None
    if not SUSPECT.search(text):
        return None
    if BROKEN.search(text):
        return Drop("replacement character or lone surrogate")
    if found := options.mojibake and MOJIBAKE.search(text):
        return Drop("text decoded with the wrong character set", found.group())
    return Drop("control character") if CONTROL.search(text) else None


@dataclass
class MissingAnswerOptions:
    """No final answer of the assistant, one that `pattern` does not match, or no reasoning in reasoning mode."""

    pattern: str | None = None  # a regular expression found in the answer, e.g. '\\\\boxed'
    reference: bool = False  # meta.answer is required, as accuracy needs it
    reasoning: bool = True  # a record of reasoning mode must have reasoning

    def __post_init__(self):
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression ({error})") from error


@rule
def missing_answer(options: MissingAnswerOptions, item: Item) -> Drop | None:
    """Drops records without an answer, with one that lacks the pattern, or without the reasoning of their mode."""
    answer, record = item.text("answer"), item.record
    if not answer or answer.isspace():
        return UNANSWERED
    if options.pattern and not re.search(options.pattern, answer):
        return Drop("answer without the pattern")
    if options.reference and record.meta.get("answer") in (None, ""):
        return Drop("no reference answer in meta.answer")
    if options.reasoning and record.thinking == "reasoning" and not item.text("reasoning").strip():
        return Drop("reasoning mode without reasoning")
    return None


@dataclass
class RefusalOptions:
    """A refusal phrase at the start of the answer."""

    phrases: list[str] | None = None  # in any case; null: refusals.json
    within: int = option(200, low=1)  # characters at the start of the answer

    def __post_init__(self):
        if self.phrases is None:  # in full, as they determine the selection
            self.phrases = list(REFUSALS)
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise ValueError("phrases must hold at least one phrase and no empty one")
        self.plain_phrases = list(map(_plain, self.phrases))


@rule
def refusal(options: RefusalOptions, item: Item) -> Drop | None:
    """Drops answers that start with a refusal."""
    opening = _plain(item.text("answer")[: options.within])
    found = next((phrase for phrase in options.plain_phrases if phrase in opening), None)
    return found and Drop("refusal", found)


def _plain(text: str) -> str:
    return text.lower().replace("\u2019", "'")


@dataclass
class CodeFencesOptions:
    """A code block that is never closed."""

    of: Part = "response"


@rule
def code_fences(options: CodeFencesOptions, item: Item) -> Drop | None:
    """Drops texts with a fence of ``` or ~~~ that is never closed."""
    text = item.text(options.of)
    if "```" not in text and "~~~" not in text:
        return None
    opened = ""
    for fence, rest in FENCE.findall(text):
        if not opened:
            opened = "" if fence[0] == "`" and "`" in rest else fence  # ```code``` within a line opens no block
        elif fence[0] == opened[0] and len(fence) >= len(opened) and not rest.strip():
            opened = ""
    return Drop("code block that never closes") if opened else None


@dataclass
class CompressionOptions:
    """Compressed size over size (zlib): low where a text repeats itself or earlier records of its group."""

    of: Part = "conversation"
    over: Literal["record", Group] = "record"  # a group: after the last 32 KB kept of it
    min_ratio: float = option(0.2, low=0)
    max_ratio: float | None = None  # 1.0: incompressible; null: no limit
    min_characters: int = 200  # shorter texts are kept

    def __post_init__(self):
        if self.max_ratio is not None and self.max_ratio <= self.min_ratio:
            raise ValueError(f"max_ratio={self.max_ratio} must be above min_ratio={self.min_ratio}")


@step
def compression(options: CompressionOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Drops records by the ratio of zlib-compressed to plain size, alone or after the kept records of the group.

    With a group, the compressor keeps the last 32 KB of the group's kept texts, so that a repetition of them compresses
    well; a dropped record does not enter it.
    """
    least, most, histories = options.min_ratio, options.max_ratio, {}
    for item in items:
        text = item.text(options.of)
        if len(text) < options.min_characters:
            yield item
            continue
        data = text.encode("utf-8", "surrogatepass")
        if options.over == "record":
            size = len(zlib.compress(data, 6))
        else:
            group = group_of(item, options.over)
            follower = histories[group].copy() if group in histories else zlib.compressobj(6)
            size = len(follower.compress(data)) + len(follower.flush(zlib.Z_SYNC_FLUSH))
        ratio = size / len(data)
        if ratio < least:
            context.drop(item, Drop(f"compresses below {least:g} of its size", f"{ratio:.3f}"))
        elif most is not None and ratio > most:
            context.drop(item, Drop(f"compresses to more than {most:g} of its size", f"{ratio:.3f}"))
        else:
            if options.over != "record":
                histories[group] = follower
            yield item

"""Rules on single records: each factory returns a check, a function from an Item to a Drop or None."""

import re
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from mindspore_impl.data.selection.options import (
    BrokenUnicodeOptions,
    CodeFencesOptions,
    CompressionOptions,
    LanguageOptions,
    LengthOptions,
    MissingAnswerOptions,
    RefusalOptions,
    RepetitionOptions,
)
from mindspore_impl.data.selection.stream import UNANSWERED, Check, Context, Drop, Item, group_of
from mindspore_impl.data.selection.words import CJK, words

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


def length(options: LengthOptions, context: Context) -> Check:
    """Drops texts that are too short or too long, in characters or in tokens of the given tokenizer."""
    if (options.tokenizer is None) != (options.min_tokens is None and options.max_tokens is None):
        raise context.refuse("min_tokens and max_tokens need `tokenizer`, and a tokenizer needs one of them")
    limits = [("characters", len, options.min_characters, options.max_characters)]
    if options.tokenizer:
        from mindspore_impl.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(Path(options.tokenizer))
        limits.append(("tokens", lambda text: len(tokenizer.encode(text)), options.min_tokens, options.max_tokens))

    def check(item: Item) -> Drop | None:
        text = item.text(options.of)
        for unit, measure, least, most in limits:
            count = measure(text)
            if least is not None and count < least:
                return Drop(f"{options.of} shorter than {least} {unit}", f"{count} {unit}")
            if most is not None and count > most:
                return Drop(f"{options.of} longer than {most} {unit}", f"{count} {unit}")
        return None

    return check


def tokenizer_files(options: LengthOptions) -> list[str]:
    """The tokenizer file determines the result, so its hash belongs to the selection."""
    return [options.tokenizer] if options.tokenizer else []


def language(options: LanguageOptions, context: Context) -> Check:
    """Drops texts whose shares of CJK and Latin letters among all letters lie outside the limits."""
    limits = {
        "CJK": (options.min_cjk, options.max_cjk),
        "Latin": (options.min_latin, options.max_latin),
        "CJK or Latin": (options.min_either, 1.0),
    }
    for name, (least, most) in limits.items():
        if not 0 <= least <= most <= 1:
            raise context.refuse(f"the limits of {name} letters, {least} and {most}, must be ordered and in 0 to 1")

    def check(item: Item) -> Drop | None:
        shares = letter_shares(item.text(options.of))
        if shares is None:
            return None
        for (name, (least, most)), share in zip(limits.items(), (*shares, sum(shares)), strict=True):
            if share < least or share > most:
                return Drop(f"too {'few' if share < least else 'many'} {name} letters", f"{share:.2f}")
        return None

    return check


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


def repetition(options: RepetitionOptions, context: Context) -> Check:
    """Drops texts by the share of repeated lines or word n-grams, 1 - distinct / all."""
    size, most, most_lines = options.ngram, options.max_repeated_ngrams, options.max_repeated_lines
    if size < 1 or not (0 <= most <= 1 and 0 <= most_lines <= 1):
        raise context.refuse(f"ngram={size} must be 1 or more, and both limits in 0 to 1")
    in_lines, in_runs = Drop("repeated lines"), Drop(f"repeated runs of {size} words")

    def check(item: Item) -> Drop | None:
        text = item.text(options.of)
        if "\n" in text:
            lines = [line for line in text.split("\n") if line and not line.isspace()]
            share = 1 - len(set(lines)) / len(lines) if lines else 0.0
            if share > most_lines:
                return in_lines._replace(detail=f"{share:.2f} of {len(lines)} lines")
        found = words(text)
        count = len(found) - size + 1
        # Each distinct word starts a distinct n-gram, but for the last few: often the n-grams need not be counted.
        if len(found) < options.min_words or count < 1 or 1 - (len(set(found)) - size + 1) / count <= most:
            return None
        share = 1 - len(set(zip(*(found[start:] for start in range(size)), strict=False))) / count
        return in_runs._replace(detail=f"{share:.2f} of {count} runs") if share > most else None

    return check


def broken_unicode(options: BrokenUnicodeOptions, context: Context) -> Check:
    """Drops texts with replacement or control characters, lone surrogates or mojibake."""
    lost = Drop("replacement character or lone surrogate")
    control, wrong = Drop("control character"), Drop("text decoded with the wrong character set")

    def check(item: Item) -> Drop | None:
        text = item.text(options.of)
        if text.isascii():
            data = text.encode()
            return control if len(data.translate(None, ASCII_CONTROL)) < len(data) else None
        if not SUSPECT.search(text):
            return None
        if BROKEN.search(text):
            return lost
        if found := options.mojibake and MOJIBAKE.search(text):
            return wrong._replace(detail=found.group())
        return control if CONTROL.search(text) else None

    return check


def missing_answer(options: MissingAnswerOptions, context: Context) -> Check:
    """Drops records without an answer, with one that lacks the pattern, or without the reasoning of their mode."""
    try:
        pattern = re.compile(options.pattern) if options.pattern else None
    except re.error as error:
        raise context.refuse(f"pattern {options.pattern!r} is not a regular expression ({error})") from error
    unmatched, unknown = Drop("answer without the pattern"), Drop("no reference answer in meta.answer")
    unreasoned = Drop("reasoning mode without reasoning")

    def check(item: Item) -> Drop | None:
        answer, record = item.text("answer"), item.record
        if not answer or answer.isspace():
            return UNANSWERED
        if pattern and not pattern.search(answer):
            return unmatched
        if options.reference and record.meta.get("answer") in (None, ""):
            return unknown
        if options.reasoning and record.thinking == "reasoning" and not item.text("reasoning").strip():
            return unreasoned
        return None

    return check


def refusal(options: RefusalOptions, context: Context) -> Check:
    """Drops answers that start with a refusal."""
    if options.within < 1 or not options.phrases or not all(phrase.strip() for phrase in options.phrases):
        raise context.refuse("phrases must hold at least one phrase and no empty one, and `within` be 1 or more")
    phrases, drop = [_plain(phrase) for phrase in options.phrases], Drop("refusal")

    def check(item: Item) -> Drop | None:
        opening = _plain(item.text("answer")[: options.within])
        for phrase in phrases:
            if phrase in opening:
                return drop._replace(detail=phrase)
        return None

    return check


def _plain(text: str) -> str:
    return text.lower().replace("\u2019", "'")


def code_fences(options: CodeFencesOptions, context: Context) -> Check:
    """Drops texts with a fence of ``` or ~~~ that is never closed."""
    drop = Drop("code block that never closes")

    def check(item: Item) -> Drop | None:
        text = item.text(options.of)
        if "```" not in text and "~~~" not in text:
            return None
        opened = ""
        for fence, rest in FENCE.findall(text):
            if not opened:
                opened = "" if fence[0] == "`" and "`" in rest else fence  # ```code``` within a line opens no block
            elif fence[0] == opened[0] and len(fence) >= len(opened) and not rest.strip():
                opened = ""
        return drop if opened else None

    return check


def compression(options: CompressionOptions, context: Context) -> Check:
    """Drops records by the ratio of zlib-compressed to plain size, alone or after the kept records of the group.

    With a group, the compressor keeps the last 32 KB of the group's kept texts, so that a repetition of them compresses
    well; a dropped record does not enter it.
    """
    least, most = options.min_ratio, options.max_ratio
    if least < 0 or most is not None and most <= least:
        raise context.refuse(f"min_ratio={least} must be 0 or more, and max_ratio={most} larger")
    low = Drop(f"compresses below {least:g} of its size")
    high = Drop(f"compresses to more than {most:g} of its size") if most is not None else None
    histories: dict = {}

    def check(item: Item) -> Drop | None:
        text = item.text(options.of)
        if len(text) < options.min_characters:
            return None
        data = text.encode("utf-8", "surrogatepass")
        if options.over == "record":
            size = len(zlib.compress(data, 6))
        else:
            group = group_of(item, options.over)
            follower = histories[group].copy() if group in histories else zlib.compressobj(6)
            size = len(follower.compress(data)) + len(follower.flush(zlib.Z_SYNC_FLUSH))
        ratio = size / len(data)
        if ratio < least:
            return low._replace(detail=f"{ratio:.3f}")
        if high and ratio > most:
            return high._replace(detail=f"{ratio:.3f}")
        if options.over != "record":
            histories[group] = follower
        return None

    return check

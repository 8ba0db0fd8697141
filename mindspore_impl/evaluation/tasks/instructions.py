"""The 25 verifiable instructions of IF-Eval: {name: (response, **arguments) -> followed}.

Arguments are named as in the published file. Words that a response must contain are literal, not patterns.
"""

import json
import re
from collections.abc import Callable
from inspect import signature
from typing import Any

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.language import language_is

RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
LISTS = {"keywords", "forbidden_words"}  # the arguments that are lists
TEXTS = {
    "keyword", "relation", "letter", "let_relation", "language", "first_word", "postscript_marker", "section_spliter",
    "prompt_to_repeat", "end_phrase", "capital_relation",
}  # fmt: skip


def follows(name: str, arguments: dict[str, Any], response: str) -> bool:
    """Whether `response` follows the instruction; `check_arguments` must have passed."""
    return CHECKS[name](response, **arguments)


def check_arguments(name: str, arguments: dict[str, Any], where: str) -> None:
    """Raise UserError for an unknown instruction, and for missing, unknown or ill-typed arguments."""
    if name not in CHECKS:
        raise UserError(f"{where}: the instruction {name!r} is not known; known: {', '.join(CHECKS)}")
    wanted = list(signature(CHECKS[name]).parameters)[1:]
    for argument in wanted:
        if argument not in arguments:
            raise UserError(f"{where}: {name} needs the argument {argument!r}")
        kind = list if argument in LISTS else str if argument in TEXTS else int
        # Some copies have 3.0 for 3.
        if not isinstance(arguments[argument], (int, float) if kind is int else kind):
            raise UserError(f"{where}: {name}: {argument} must be {kind.__name__}")
        if "relation" in argument and arguments[argument] not in ("less than", "at least"):
            raise UserError(f"{where}: {name}: {argument} must be 'less than' or 'at least'")
    if foreign := set(arguments) - set(wanted):
        raise UserError(f"{where}: {name} has no argument {sorted(foreign)[0]!r}")


def _holds(count: int, relation: str, number: float) -> bool:
    return count < number if relation == "less than" else count >= number


def _found(pattern: str, response: str) -> int:
    return len(re.findall(pattern, response, re.IGNORECASE))


def _paragraphs(response: str, num_paragraphs) -> bool:
    """Separated by ***; an empty paragraph is allowed only at either end."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def _first_word(response: str, num_paragraphs, nth_paragraph, first_word) -> bool:
    """Separated by empty lines; the n-th paragraph, counting empty ones, must begin with the word."""
    parts = [part.strip() for part in response.split("\n\n")]
    count = sum(map(bool, parts))
    if count != num_paragraphs or not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _postscript(response: str, postscript_marker) -> bool:
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(pattern, response.lower()) is not None


def _bullets(response: str, num_bullets) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", response, re.MULTILINE)) == num_bullets


def _highlights(response: str, num_highlights) -> bool:
    single = [text for text in re.findall(r"\*[^\n\*]*\*", response) if text.strip("*").strip()]
    double = [text for text in re.findall(r"\*\*[^\n\*]*\*\*", response) if text[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _json(response: str) -> bool:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(response: str) -> bool:
    """Separated by ******, and different; an empty part is allowed only at either end."""
    parts = [part.strip() for part in response.split("******")]
    found = [part for part in parts if part]
    return all(parts[1:-1]) and len(found) == 2 and found[0] != found[1]


_ABBREVIATION = re.compile(
    r"\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|inc|ltd|co|no|fig|[a-z])\.$", re.IGNORECASE
)


def split_sentences(text: str) -> list[str]:
    """Split after . ! ? or their Chinese forms before no lower-case letter; abbreviations and initials end none."""
    found, start = [], 0
    for match in re.finditer(r"[.!?]+[\"')\]”’]*(?=\s+[^a-z\s])|[。！？]+[”’」]?", text):
        if match[0] == "." and _ABBREVIATION.search(text[start : match.end()]):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    return [sentence for sentence in [*found, text[start:].strip()] if sentence]


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda text, keywords: all(_found(re.escape(str(word)), text) for word in keywords),
    "keywords:frequency": lambda text, keyword, frequency, relation: _holds(
        _found(re.escape(keyword.strip()), text), relation, frequency
    ),
    "keywords:forbidden_words": lambda text, forbidden_words: (
        not any(_found(rf"\b{re.escape(str(word))}\b", text) for word in forbidden_words)
    ),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: _holds(
        text.lower().count(letter.strip().lower()), let_relation, let_frequency
    ),
    "language:response_language": language_is,
    "length_constraints:number_sentences": lambda text, num_sentences, relation: _holds(
        len(split_sentences(text)), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda text, num_words, relation: _holds(
        _found(r"\w+", text), relation, num_words
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        _found(r"\[.*?\]", text) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text: any(answer in text for answer in RESPONSES),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        len(re.split(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)) - 1 >= num_sections
    ),
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text: any(
        title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text)
    ),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    # Words roughly as nltk splits them: without punctuation, with hyphens and inner points.
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation: _holds(
        sum(map(str.isupper, re.findall(r"\w+(?:[-./]\w+)*", text))), capital_relation, capital_frequency
    ),
    "change_case:english_capital": lambda text: text.isupper() and language_is(text, "en"),
    "change_case:english_lowercase": lambda text: text.islower() and language_is(text, "en"),
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:quotation": lambda text: re.fullmatch(r'".*"', text.strip(), re.DOTALL) is not None,
}

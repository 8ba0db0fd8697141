"""The 25 verifiable instructions of IF-Eval, one function each: (response, **arguments) -> followed.

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


def follows(name: str, arguments: dict[str, Any], response: str) -> bool:
    """Whether `response` follows the instruction; `check_arguments` must have passed."""
    return CHECKS[name](response, **arguments)


def check_arguments(name: str, arguments: dict[str, Any], where: str) -> None:
    """Raise UserError for an unknown instruction, and for missing, unknown or ill-typed arguments."""
    if name not in CHECKS:
        raise UserError(f"{where}: the instruction {name!r} is not known; known: {', '.join(CHECKS)}")
    wanted = list(signature(CHECKS[name]).parameters.values())[1:]
    for parameter in wanted:
        if parameter.name not in arguments:
            raise UserError(f"{where}: {name} needs the argument {parameter.name!r}")
        kind = (int, float) if parameter.annotation is int else parameter.annotation  # some copies have 3.0 for 3
        if not isinstance(arguments[parameter.name], kind):
            raise UserError(f"{where}: {name}: {parameter.name} must be {parameter.annotation.__name__}")
        if "relation" in parameter.name and arguments[parameter.name] not in ("less than", "at least"):
            raise UserError(f"{where}: {name}: {parameter.name} must be 'less than' or 'at least'")
    if foreign := set(arguments) - {parameter.name for parameter in wanted}:
        raise UserError(f"{where}: {name} has no argument {sorted(foreign)[0]!r}")


def _holds(count: int, relation: str, number: float) -> bool:
    return count < number if relation == "less than" else count >= number


def _keywords(response: str, keywords: list) -> bool:
    return all(re.search(re.escape(str(word)), response, re.IGNORECASE) for word in keywords)


def _keyword_frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(len(re.findall(re.escape(keyword.strip()), response, re.IGNORECASE)), relation, frequency)


def _forbidden_words(response: str, forbidden_words: list) -> bool:
    return not any(re.search(rf"\b{re.escape(str(word))}\b", response, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _sentences(response: str, num_sentences: int, relation: str) -> bool:
    return _holds(len(split_sentences(response)), relation, num_sentences)


def _paragraphs(response: str, num_paragraphs: int) -> bool:
    """Separated by ***; an empty paragraph is allowed only at either end."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def _words(response: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", response)), relation, num_words)


def _first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Separated by empty lines; the n-th paragraph, counting empty ones, must begin with the word."""
    parts = [part.strip() for part in response.split("\n\n")]
    count = sum(map(bool, parts))
    if count != num_paragraphs or not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _placeholders(response: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def _postscript(response: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(pattern, response.lower()) is not None


def _bullets(response: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", response, re.MULTILINE)) == num_bullets


def _highlights(response: str, num_highlights: int) -> bool:
    single = [text for text in re.findall(r"\*[^\n\*]*\*", response) if text.strip("*").strip()]
    double = [text for text in re.findall(r"\*\*[^\n\*]*\*\*", response) if text[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _numbered_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", response)) - 1 >= num_sections


def _json(response: str) -> bool:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str) -> bool:
    return any(text.lstrip("<").rstrip(">").strip() for text in re.findall(r"<<[^\n]+>>", response))


def _two_responses(response: str) -> bool:
    """Separated by ******, and different; an empty part is allowed only at either end."""
    parts = [part.strip() for part in response.split("******")]
    found = [part for part in parts if part]
    return all(parts[1:-1]) and len(found) == 2 and found[0] != found[1]


def _repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_words(response: str, capital_frequency: int, capital_relation: str) -> bool:
    """Words roughly as nltk splits them: without punctuation, with hyphens and inner points."""
    words = re.findall(r"\w+(?:[-./]\w+)*", response)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


_ABBREVIATION = re.compile(
    r"\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|inc|ltd|co|no|fig|[a-z])\.$", re.IGNORECASE
)


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences.

    They end at . ! ? or their Chinese forms before anything but a lower-case letter; abbreviations and initials end
    none.
    """
    found, start = [], 0
    for match in re.finditer(r"[.!?]+[\"')\]”’]*(?=\s+[^a-z\s])|[。！？]+[”’」]?", text):
        if match[0] == "." and _ABBREVIATION.search(text[start : match.end()]):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    return [sentence for sentence in [*found, text[start:].strip()] if sentence]


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": language_is,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda response: any(text in response for text in RESPONSES),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _numbered_sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda response: response.isupper() and language_is(response, "en"),
    "change_case:english_lowercase": lambda response: response.islower() and language_is(response, "en"),
    "punctuation:no_comma": lambda response: "," not in response,
    "startend:quotation": lambda response: re.fullmatch(r'".*"', response.strip(), re.DOTALL) is not None,
}

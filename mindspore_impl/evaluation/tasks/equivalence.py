r"""Whether two final answers of mathematics are equal as values, not as texts.

The last \boxed{...} is the answer. Meaningless notation is removed (\left, spaces, \dfrac, \text, units, degrees,
dollar and percent signs, "x ="). If the texts differ then, tuples, intervals, sets, unions, matrices and equations are
compared part by part, and expressions by their values at four points (`arithmetic.py`: no model output is executed;
sympy's parser, which executes text, is not used).
"""

import itertools
import re
from collections.abc import Callable

from mindspore_impl.evaluation.tasks.arithmetic import NoValue, letters, value

MAX_LENGTH = 1000  # characters; a longer answer is compared as text alone
MAX_BOXES = 20  # examined from the end: bounds the time for thousands of unclosed boxes
TOLERANCE = 1e-9  # relative, of values that are not rational

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_UNITS = (
    r"degrees?|units?|inch(?:es)?|feet|foot|ft|cm|mm|km|m|meters?|metres?|centimeters?|miles?|mph|kg|grams?|g|seconds?|"
    r"minutes?|hours?|days?|weeks?|months?|years?|cents?|dollars?|percent|points?|square|cubic|sq|pounds?|lbs?|ml|liters?"
)
_UNIT = rf"(?:(?:{_UNITS})\b\.?)(?:\s*\^\s*\{{?[23]\}}?)?"
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_AND = re.compile(r",?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)")
_DROPPED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\[bB]ig[lrm]?(?![a-z])|(?<!\\)\\[,;:! ]|\\q?quad(?![a-z])|~|"
    r"\\displaystyle(?![a-z])|\\\$|\$|\\%|%|\^\s*\{?\s*\\circ\s*\}?|\\degree|°|\\\(|\\\)|\\\[|\\\]"
)
_REPLACED = (
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:leqslant|leq|le)(?![a-z])"), "<="),
    (re.compile(r"\\(?:geqslant|geq|ge)(?![a-z])"), ">="),
    (re.compile(r"\\(?:lt)(?![a-z])"), "<"),
    (re.compile(r"\\(?:gt)(?![a-z])"), ">"),
    (re.compile(r"\\(?:neq|ne)(?![a-z])"), "!="),
    (re.compile(r"\\lvert|\\rvert|\\vert|\\mid"), "|"),
    (re.compile(r"\\log_\{?([0-9a-z]+)\}?"), r"\\log[\1]"),
    (re.compile(r"∞"), r"\\infty "),
    (re.compile(r"π"), r"\\pi "),
    (re.compile(r"−|–"), "-"),
    (re.compile(r"×"), r"\\times "),
    (re.compile(r"√(\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"\\\{"), "⟨"),  # braces of a set, distinct from TeX's
    (re.compile(r"\\\}"), "⟩"),
)
_MATRIX = re.compile(r"\\begin\{([bpvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.DOTALL)
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ASSIGNED = re.compile(r"\s*[a-zA-Z](?:_\{?\w+\}?|\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*")
_OPEN, _CLOSE = "([⟨{", ")]⟩}"
_POINTS = (0.7391, 1.6180339, 2.7137, -1.3331)


def final_answer(completion: str) -> str | None:
    r"""The contents of the last balanced \boxed{...} or \fbox; None without one."""
    for match in reversed(list(_BOXED.finditer(completion))[-MAX_BOXES:]):
        depth = 0
        for place in range(match.end(), len(completion)):
            depth += (completion[place] == "{") - (completion[place] == "}")
            if depth == 0:
                return completion[match.end() + 1 : place]
    return None


def equivalent(given: str, right: str) -> bool:
    """Whether two answers, in LaTeX or plain text, are equal."""
    (given, worded), (right, also_worded) = _normal(given), _normal(right)
    if _squeezed(given) == _squeezed(right):
        return True
    if worded or also_worded:
        return _letters_only(given) == _letters_only(right) != ""
    if len(given) > MAX_LENGTH or len(right) > MAX_LENGTH:
        return False
    return _same(given, right, 0)


def _normal(text: str) -> tuple[str, bool]:
    """`text` without meaningless notation, and whether it is an answer in words."""
    text = text.strip()
    boxed = final_answer(text)
    text = (boxed if boxed is not None else text).strip().replace(r"\!", "").replace("{,}", ",")
    text = re.sub(rf"\\(?:text|mathrm|mbox|textrm)\s*\{{\s*{_UNIT}\s*\}}(?:\s*\^\s*\{{?[23]\}}?)?", " ", text)
    text = _AND.sub(",", text)
    words = [word for word in _TEXT.findall(text) if re.search(r"[^\W\d_]", word)]
    text = _TEXT.sub(r" \1 ", text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _DROPPED.sub(" ", text)
    text = re.sub(rf"(?<=[\d}})])(?<!\\)\s+{_UNIT}(?:\s+{_UNIT})*\s*$", "", text.strip())
    text = text.strip().rstrip(".").strip()
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    bare = re.sub(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+", " ", text)
    return text, bool(words) or re.search(r"[^\W\d_]{3,}", bare) is not None


def _squeezed(text: str) -> str:
    """Remove spaces and redundant braces."""
    text = re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s", "", text))
    return re.sub(r"^0(?=\.\d)", "", text)


def _letters_only(text: str) -> str:
    """Lower case, without brackets, spaces and punctuation."""
    return re.sub(r"[\s()\[\]{}\"'`.,;:]", "", text).lower()


def _same(given: str, right: str, depth: int) -> bool:
    """Compare part by part, loosest binding first."""
    given, right = given.strip(), right.strip()
    if depth > 8:
        return False
    for whole in (_matrices, _equations, _unions, _signs, _collections):
        verdict = whole(given, right, lambda a, b: _same(a, b, depth + 1))
        if verdict is not None:
            return verdict
    return _equal_values(given, right)


Compare = Callable[[str, str], bool]


def _matrices(given: str, right: str, same: Compare) -> bool | None:
    matches = [_MATRIX.fullmatch(text) for text in (given, right)]
    if not any(matches):
        return None
    if not all(matches):
        return False
    tables = [[row.split("&") for row in re.split(r"\\\\", m[2].strip()) if row.strip()] for m in matches]
    return _each(*([cell for row in table for cell in row] for table in tables), same) and [*map(len, tables[0])] == [
        *map(len, tables[1])
    ]


def _equations(given: str, right: str, same: Compare) -> bool | None:
    """x = 5 equals 5 when only one side is an assignment; equations are equal when proportional."""
    sides = [re.split(r"(<=|>=|!=|<|>|=)", _unassigned(text)) for text in (given, right)]
    if len(sides[0]) == len(sides[1]) == 1:
        return same(*(side[0] for side in sides)) if sides != [[given], [right]] else None
    if len(sides[0]) != len(sides[1]):
        return False
    if sides[0][1::2] == sides[1][1::2] and _each(sides[0][::2], sides[1][::2], same):
        return True
    if sides[0][1::2] == sides[1][1::2] == ["="]:
        return _proportional(*(f"({side[0]})-({side[2]})" for side in sides))
    return False


def _unassigned(text: str) -> str:
    rest = _ASSIGNED.sub("", text, count=1) if _ASSIGNED.match(text) else text
    return rest if not re.search(r"[<>=]", rest) and (letters_of(rest) == set() or "\\in" in text) else text


def letters_of(text: str) -> set[str]:
    """The variables of a text; none where it is not an expression."""
    try:
        return letters(re.sub(r"[,⟨⟩]|\\infty|\\cup", " ", text))
    except NoValue:
        return set()


def _unions(given: str, right: str, same: Compare) -> bool | None:
    parts = [re.split(r"\\cup(?![a-z])", text) for text in (given, right)]
    return None if len(parts[0]) == len(parts[1]) == 1 else _matched(*parts, same)


def _collections(given: str, right: str, same: Compare) -> bool | None:
    """Tuples and intervals in order and with their brackets, sets and bare lists in any order."""
    found = [_elements(text) for text in (given, right)]
    if len(found[0][1]) == len(found[1][1]) == 1 and "⟨" not in found[0][0] + found[1][0]:
        return None
    (kind, one), (other_kind, other) = found
    unordered = {"", "⟨⟩"}
    if {kind, other_kind} <= unordered:
        return _matched(one, other, same)
    return kind == other_kind and _each(one, other, same)


def _elements(text: str) -> tuple[str, list[str]]:
    """(brackets, elements) of a bracketed list; ("", elements) of a bare one."""
    brackets, inner = "", text
    if len(text) > 1 and text[0] in "([⟨" and text[-1] in ")]⟩" and _closes_at_end(text):
        brackets, inner = text[0] + text[-1], text[1:-1]
    parts = _split(inner)
    if brackets and len(parts) == 1 and brackets != "⟨⟩":
        return "", [text]
    return brackets, parts


def _depths(text: str) -> list[int]:
    """Open brackets after each letter."""
    return list(itertools.accumulate((letter in _OPEN) - (letter in _CLOSE) for letter in text))


def _closes_at_end(text: str) -> bool:
    depths = _depths(text)
    return 0 in depths and depths.index(0) == len(text) - 1


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    commas = [place for place, depth in enumerate(_depths(text)) if depth == 0 and text[place] == ","]
    return [text[first + 1 : last] for first, last in itertools.pairwise([-1, *commas, len(text)])]


def _signs(given: str, right: str, same: Compare) -> bool | None:
    r"""a \pm b is the list a + b, a - b."""
    if not any("\\pm" in text for text in (given, right)):
        return None
    both = [_split(text) if "\\pm" not in text else [text.replace("\\pm", s) for s in "+-"] for text in (given, right)]
    return _matched(*both, same)


def _each(one: list[str], other: list[str], same: Compare) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def _matched(one: list[str], other: list[str], same: Compare) -> bool:
    """Equal in some order. Equality is transitive, so that greedy matching suffices."""
    left = list(other)
    for element in one:
        partner = next((index for index, candidate in enumerate(left) if same(element, candidate)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def _equal_values(given: str, right: str) -> bool:
    if _squeezed(given) == _squeezed(right):
        return True
    try:
        values = list(zip(*(_values(text, given + " " + right) for text in (given, right)), strict=True))
    except NoValue:
        return False
    return all(_close(*pair) for pair in values)


def _proportional(given: str, right: str) -> bool:
    try:
        ratios = [a / b for a, b in zip(*(_values(t, given + right) for t in (given, right)), strict=True)]
    except (NoValue, ArithmeticError):
        return False
    return all(_close(ratio, ratios[0]) and abs(ratio) > TOLERANCE for ratio in ratios)


def _values(text: str, names_from: str) -> list:
    """The values of `text` at _POINTS; variables in alphabetical order get different values."""
    names = sorted(letters(names_from))
    return [
        value(text, {name: point * (1 + 0.137 * place) for place, name in enumerate(names)}) for point in _POINTS
    ]  # fmt: skip


def _close(one, other) -> bool:
    if one == other:
        return True
    if all(not isinstance(number, float | complex) for number in (one, other)):
        return False
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))

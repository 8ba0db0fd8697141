r"""Whether two final answers of mathematics are equal as values, not as texts.

The last \boxed{...} is the answer. Meaningless notation is removed (\left, spaces, \dfrac, \text, units, degrees,
dollar and percent signs, "x ="). If the texts differ then, tuples, intervals, sets, unions, matrices and equations are
compared part by part, and expressions by their values at four points (`arithmetic.py`: no model output is executed;
sympy's parser, which executes text, is not used).
"""

import itertools
import re
import unicodedata
from collections.abc import Callable

from mindspore_impl.data.answers import LETTERS, half_width
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
_BESIDE = rf"(?:[^\W\d_{LETTERS}十百千万亿兆萬億成折半]|\\text\s*\{{[^{{}}\\\d{LETTERS}]+\}})"
_WORDS_BESIDE = re.compile(  # 共 18 个。, but not 18 万
    rf"^(?:{_BESIDE}[\s,:、]*)+(?=[(\[]*[-+$.]?\d|\\(?!text))|(?<=[\d}})\]%])(?:\s*{_BESIDE})*[\s.。]*$"
)
_EXPONENT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_REPLACED = (
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:leqslant|leq|le)(?![a-z])"), "<="),
    (re.compile(r"\\(?:geqslant|geq|ge)(?![a-z])"), ">="),
    (re.compile(r"\\lt(?![a-z])"), "<"),
    (re.compile(r"\\gt(?![a-z])"), ">"),
    (re.compile(r"\\(?:neq|ne)(?![a-z])"), "!="),
    (re.compile(r"\\lvert|\\rvert|\\vert|\\mid"), "|"),
    (re.compile(r"\\log_\{?([0-9a-z]+)\}?"), r"\\log[\1]"),
    (re.compile(r"∞"), r"\\infty "),
    (re.compile(r"π"), r"\\pi "),
    (re.compile(r"–"), "-"),
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
    if worded or also_worded:  # compared without brackets, spaces and punctuation
        bare = [re.sub(r"[\s()\[\]{}\"'`.,;:]", "", text).lower() for text in (given, right)]
        return bare[0] == bare[1] != ""
    return max(len(given), len(right)) <= MAX_LENGTH and _same(given, right, 0)


def _normal(text: str) -> tuple[str, bool]:
    """`text` without meaningless notation, and whether it is an answer in words."""
    boxed = final_answer(text)
    text = half_width(text if boxed is None else boxed).strip().replace(r"\!", "").replace("{,}", ",")
    text = _EXPONENT.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    text = _WORDS_BESIDE.sub("", text)
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
    text = re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s", "", text))
    return re.sub(r"^0(?=\.\d)", "", text)


def _same(given: str, right: str, depth: int) -> bool:
    """Compare part by part, loosest binding first."""
    given, right = given.strip(), right.strip()
    if depth > 8:
        return False
    for whole in (_matrices, _equations, _unions, _signs, _collections):
        verdict = whole(given, right, lambda a, b: _same(a, b, depth + 1))
        if verdict is not None:
            return verdict
    if _squeezed(given) == _squeezed(right):
        return True
    try:
        return all(_close(*pair) for pair in _values(given, right))
    except NoValue:
        return False


def _matrices(given: str, right: str, same: Callable) -> bool | None:
    matches = [_MATRIX.fullmatch(text) for text in (given, right)]
    if not all(matches):
        return False if any(matches) else None
    tables = [[row.split("&") for row in re.split(r"\\\\", m[2].strip()) if row.strip()] for m in matches]
    return _each(*tables, lambda one, other: _each(one, other, same))


def _equations(given: str, right: str, same: Callable) -> bool | None:
    """x = 5 equals 5 when only one side is an assignment; equations are equal when proportional."""
    one, other = (re.split(r"(<=|>=|!=|<|>|=)", _unassigned(text)) for text in (given, right))
    if len(one) == len(other) == 1:
        return same(one[0], other[0]) if [*one, *other] != [given, right] else None
    if one[1::2] != other[1::2]:
        return False
    if _each(one[::2], other[::2], same):
        return True
    if one[1::2] != ["="]:
        return False
    try:
        ratios = [a / b for a, b in _values(*(f"({left})-({right})" for left, _, right in (one, other)))]
    except (NoValue, ArithmeticError):
        return False
    return all(_close(ratio, ratios[0]) and abs(ratio) > TOLERANCE for ratio in ratios)


def _unassigned(text: str) -> str:
    r"""The value of an assignment such as x = 5 or x \in [1, 2]; other texts as they are."""
    rest = _ASSIGNED.sub("", text, count=1) if _ASSIGNED.match(text) else text
    if re.search(r"[<>=]", rest):
        return text
    try:
        variables = letters(re.sub(r"[,⟨⟩]|\\infty|\\cup", " ", rest))
    except NoValue:
        variables = set()
    return text if variables and "\\in" not in text else rest


def _unions(given: str, right: str, same: Callable) -> bool | None:
    parts = [re.split(r"\\cup(?![a-z])", text) for text in (given, right)]
    return None if len(parts[0]) == len(parts[1]) == 1 else _matched(*parts, same)


def _signs(given: str, right: str, same: Callable) -> bool | None:
    r"""a \pm b is the list a + b, a - b."""
    if "\\pm" not in given + right:
        return None
    both = [[text.replace("\\pm", s) for s in "+-"] if "\\pm" in text else _split(text) for text in (given, right)]
    return _matched(*both, same)


def _collections(given: str, right: str, same: Callable) -> bool | None:
    """Tuples and intervals in order and with their brackets, sets and bare lists in any order."""
    (kind, one), (other_kind, other) = _elements(given), _elements(right)
    if len(one) == len(other) == 1 and "⟨" not in kind + other_kind:
        return None
    if {kind, other_kind} <= {"", "⟨⟩"}:
        return _matched(one, other, same)
    return kind == other_kind and _each(one, other, same)


def _elements(text: str) -> tuple[str, list[str]]:
    """(brackets, elements) of a bracketed list; ("", elements) of a bare one."""
    if len(text) < 2 or text[0] not in "([⟨" or text[-1] not in ")]⟩" or 0 in _depths(text)[:-1] or _depths(text)[-1]:
        return "", _split(text)
    brackets, parts = text[0] + text[-1], _split(text[1:-1])
    return ("", [text]) if len(parts) == 1 and brackets != "⟨⟩" else (brackets, parts)


def _depths(text: str) -> list[int]:
    """Open brackets after each letter."""
    return list(itertools.accumulate((letter in _OPEN) - (letter in _CLOSE) for letter in text))


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    commas = [place for place, depth in enumerate(_depths(text)) if depth == 0 and text[place] == ","]
    return [text[first + 1 : last] for first, last in itertools.pairwise([-1, *commas, len(text)])]


def _each(one: list, other: list, same: Callable) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def _matched(one: list[str], other: list[str], same: Callable) -> bool:
    """Equal in some order. Equality is transitive, so that greedy matching suffices."""
    left = list(other)
    for element in one:
        partner = next((index for index, candidate in enumerate(left) if same(element, candidate)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def _values(given: str, right: str) -> list[tuple]:
    """The values of both texts at _POINTS; variables in alphabetical order get different values."""
    names = sorted(letters(f"{given} {right}"))
    points = [{name: point * (1 + 0.137 * place) for place, name in enumerate(names)} for point in _POINTS]
    return [(value(given, variables), value(right, variables)) for variables in points]


def _close(one, other) -> bool:
    if one == other or not isinstance(one, float | complex) and not isinstance(other, float | complex):
        return one == other
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))

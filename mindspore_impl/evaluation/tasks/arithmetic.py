r"""Evaluate a closed-form expression in LaTeX with a small parser; no text is executed.

Known: numbers, + - * / ^ !, implicit products, fractions, roots, absolute values, binomials, mixed numbers (1\frac12),
pi, e, i, elementary functions, and single letters as variables. Rational values stay exact; the rest is complex
floating point. Sizes are bounded, so that any text of 1,000 characters takes milliseconds.
"""

import cmath
import math
import operator
import re
from collections.abc import Mapping
from fractions import Fraction

Number = Fraction | float | complex

MAX_LENGTH = 1000  # characters
MAX_DEPTH = 60  # nested brackets
MAX_BITS = 100_000  # of an exact power
MAX_FACTORIAL = 1000

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)|\\(?P<word>[a-zA-Z]+)|(?P<symbol>[a-zA-Z+\-*/^!()\[\]{}|]))"
)
_FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "exp": cmath.exp,
    "ln": cmath.log, "log": cmath.log, "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_SYMBOLS = {"cdot": "*", "times": "*", "ast": "*", "div": "/"}
_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j}
_LETTERS = {"alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "rho", "sigma", "tau", "pi"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}


class NoValue(Exception):
    """The text is not a supported expression, or has no finite value."""


def value(text: str, variables: Mapping[str, Number]) -> Number:
    """Evaluate `text` with the values of `variables`. Raises NoValue."""
    try:
        parser = _Parser(text, variables)
        result = parser.sum()
    except (ArithmeticError, ValueError, TypeError) as error:
        raise NoValue(str(error)) from error
    if parser.here != _END:
        raise NoValue(f"{parser.here} stands where an operator should")
    return result


def letters(text: str) -> set[str]:
    """The variables of `text`. Raises NoValue."""
    return {name for kind, name in _tokens(text) if kind == "letter"} - set(_CONSTANTS)


_END = ("end", "")


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text), the last _END: kind is number, word (a command), letter or symbol."""
    text = text.rstrip()
    if len(text) > MAX_LENGTH:
        raise NoValue("too long")
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NoValue(f"{text[place]!r} is not known")
        kind, name, place = match.lastgroup, match[match.lastgroup], match.end()
        if kind == "word" and name in _SYMBOLS:
            kind, name = "symbol", _SYMBOLS[name]
        elif kind == "word" and name in _LETTERS or kind == "symbol" and name.isalpha():
            kind = "letter"
        found.append((kind, name))
    return [*found, _END]


class _Parser:
    """Recursive descent; every method consumes tokens and returns their value."""

    def __init__(self, text: str, variables: Mapping[str, Number]):
        self.tokens, self.place, self.values = _tokens(text), 0, {**_CONSTANTS, **variables}
        self.depth, self.bars = 0, 0  # open brackets, and |...| among them

    @property
    def here(self) -> tuple[str, str]:
        return self.tokens[self.place]

    def take(self, *symbols: str) -> str | None:
        """Consume and return the next token if it is one of these symbols."""
        kind, name = self.here
        if kind != "symbol" or name not in symbols:
            return None
        self.place += 1
        return name

    def until(self, closing: str) -> Number:
        """The value of what stands before the bracket `closing`."""
        inner = self.sum()
        if self.take(closing) is None:
            raise NoValue(f"no {closing!r} follows")
        return inner

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoValue("nested too deeply")
        total = self.product()
        while sign := self.take("+", "-"):
            total = _OPERATORS[sign](total, self.product())
        self.depth -= 1
        return total

    def product(self) -> Number:
        total = self.signed()
        while True:
            kind, name = self.here
            if sign := self.take("*", "/"):
                total = _OPERATORS[sign](total, self.signed())
            elif kind in ("number", "word", "letter") or name and (name in "([{" or name == "|" and not self.bars):
                total = total * self.power()  # an implicit product
            else:
                return total

    def signed(self) -> Number:
        sign = 1
        while found := self.take("+", "-"):
            sign = -sign if found == "-" else sign
        return sign * self.power()

    def power(self) -> Number:
        base = self.factor()
        while self.take("!"):
            base = _factorial(base)
        return _power(base, self.argument()) if self.take("^") else base

    def factor(self) -> Number:
        kind, name = self.here
        self.place += 1
        if kind == "number":
            return self.mixed(Fraction(name), "." in name)
        if kind == "letter" and name in self.values:
            return self.values[name]
        if kind == "word":
            return self.command(name)
        if kind != "symbol" or name not in _CLOSING:
            raise NoValue(f"{name!r} stands where a value should")
        self.bars += name == "|"
        inner = self.until(_CLOSING[name])
        self.bars -= name == "|"
        return abs(inner) if name == "|" else inner

    def mixed(self, whole: Fraction, decimal: bool) -> Number:
        """A whole number directly followed by a fraction of whole numbers is a mixed number."""
        if decimal or self.here != ("word", "frac"):
            return whole
        start, self.place = self.place, self.place + 1
        parts = [self.digits(), self.digits()]
        if None in parts or self.here == ("symbol", "^"):
            self.place = start
            return whole
        return whole + parts[0] / parts[1]

    def digits(self) -> Fraction | None:
        """One digit, or a number in braces; None for anything else."""
        if not self.take("{"):
            return self.digit()
        kind, name = self.here
        self.place += kind != "end"
        return Fraction(name) if kind == "number" and self.take("}") else None

    def digit(self) -> Fraction | None:
        r"""One digit, which TeX splits from a longer number: \frac12 is 1/2."""
        kind, name = self.here
        if kind != "number":
            return None
        if len(name) > 1:
            self.tokens[self.place] = ("number", name[1:])
        else:
            self.place += 1
        return Fraction(name[0])

    def argument(self) -> Number:
        """The operand of a command or ^: a group in braces, one digit, or one other token."""
        if self.take("{"):
            return self.until("}")
        digit = self.digit()
        return self.factor() if digit is None else digit

    def command(self, name: str) -> Number:
        r"""\sin^2 x is (sin x)^2; a base \log_{b} arrives here as \log[b]."""
        extra = self.until("]") if name in ("sqrt", "log") and self.take("[") else None
        if name == "sqrt":
            return _power(self.argument(), 1 / (Fraction(2) if extra is None else extra))
        if name == "frac":
            return self.argument() / self.argument()
        if name == "binom":
            above, below = self.argument(), self.argument()
            return _factorial(above) / (_factorial(below) * _factorial(above - below))
        if name not in _FUNCTIONS:
            raise NoValue(f"\\{name} is not known")
        exponent = self.argument() if self.take("^") else None
        result = _FUNCTIONS[name](complex(self.power()))
        result = result if exponent is None else _power(result, exponent)
        return result if extra is None else result / cmath.log(extra)


def _factorial(number: Number) -> Fraction:
    if not isinstance(number, Fraction) or number.denominator != 1 or not 0 <= number <= MAX_FACTORIAL:
        raise NoValue("the factorial has no value here")
    return Fraction(math.factorial(int(number)))


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            if bits * abs(exponent) <= MAX_BITS:
                return base**exponent
        elif base < 0 and exponent.denominator % 2 and exponent.numerator == 1:
            return -float((-base) ** float(exponent))  # the real root of odd order
    return complex(base) ** complex(exponent)

r"""Evaluate a closed-form expression in LaTeX with a small parser; no text is executed.

Known: numbers, + - * / ^ !, implicit products, fractions, roots, absolute values, binomials, mixed numbers (1\frac12),
pi, e, i, elementary functions, and single letters as variables. Rational values stay exact; the rest is complex
floating point. Sizes are bounded, so that any text of 1,000 characters takes milliseconds.
"""

import cmath
import math
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
    "ln": cmath.log, "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip
_PRODUCTS = {"cdot": "*", "times": "*", "ast": "*", "div": "/"}
_LETTERS = {"alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "rho", "sigma", "tau"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}


class NoValue(Exception):
    """The text is not a supported expression, or has no finite value."""


def value(text: str, variables: Mapping[str, Number]) -> Number:
    """Evaluate `text` with the values of `variables`. Raises NoValue."""
    try:
        parser = _Parser(text, variables)
        result = parser.sum()
        if parser.here() is not None:
            raise NoValue(f"{parser.here()} stands where an operator should")
        return result
    except (ArithmeticError, ValueError, TypeError) as error:
        raise NoValue(str(error)) from error


def letters(text: str) -> set[str]:
    """The variables of `text`. Raises NoValue."""
    return {name for kind, name in _tokens(text) if kind == "letter"} - {"e", "i"}


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text): kind is number, word (a command), letter or symbol."""
    text = text.rstrip()
    if len(text) > MAX_LENGTH:
        raise NoValue("too long")
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NoValue(f"{text[place]!r} is not known")
        kind, name, place = match.lastgroup, match[match.lastgroup], match.end()
        if kind == "word" and name in _PRODUCTS:
            kind, name = "symbol", _PRODUCTS[name]
        elif kind == "word" and name in _LETTERS or kind == "symbol" and name.isalpha():
            kind = "letter"
        found.append((kind, name))
    return found


class _Parser:
    """Recursive descent; every method consumes tokens and returns their value."""

    def __init__(self, text: str, variables: Mapping[str, Number]):
        self.tokens, self.place, self.depth, self.variables = _tokens(text), 0, 0, variables

    def here(self) -> tuple[str, str] | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self, *symbols: str) -> str | None:
        """Consume and return the next token if it is one of these symbols."""
        token = self.here()
        if token is None or token[0] != "symbol" or token[1] not in symbols:
            return None
        self.place += 1
        return token[1]

    def expect(self, symbol: str) -> None:
        """Consume `symbol`, which closes a bracket."""
        if self.take(symbol) is None:
            raise NoValue(f"no {symbol!r} follows")

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoValue("nested too deeply")
        total = self.product()
        while sign := self.take("+", "-"):
            total = total + self.product() if sign == "+" else total - self.product()
        self.depth -= 1
        return total

    def product(self) -> Number:
        total = self.signed()
        while True:
            if sign := self.take("*", "/"):
                factor = self.signed()
                total = total * factor if sign == "*" else total / factor
            elif self.starts_factor():
                total = total * self.power()
            else:
                return total

    def starts_factor(self) -> bool:
        """Whether a factor follows without an operator (an implicit product)."""
        token = self.here()
        return token is not None and (token[0] != "symbol" or token[1] in "([{" or token[1] == "|" and not self.bars)

    bars = 0  # open |...|

    def signed(self) -> Number:
        sign = 1
        while found := self.take("+", "-"):
            sign = -sign if found == "-" else sign
        return sign * self.power()

    def power(self) -> Number:
        base = self.factor()
        while self.take("!"):
            base = _factorial(base)
        if self.take("^"):
            base = _power(base, self.argument())
        return base

    def factor(self) -> Number:
        token = self.here()
        if token is None:
            raise NoValue("ends too early")
        self.place += 1
        kind, name = token
        if kind == "number":
            return self.mixed(Fraction(name), "." in name)
        if kind == "letter":
            return self.letter(name)
        if kind == "word":
            return self.command(name)
        if name not in _CLOSING:
            raise NoValue(f"{name!r} stands where a number should")
        self.bars += name == "|"
        inner = self.sum()
        self.expect(_CLOSING[name])
        self.bars -= name == "|"
        return abs(inner) if name == "|" else inner

    def mixed(self, whole: Fraction, decimal: bool) -> Number:
        """A whole number directly followed by a fraction of whole numbers is a mixed number."""
        if decimal or self.here() != ("word", "frac"):
            return whole
        start, self.place = self.place, self.place + 1
        parts = [self.digits(), self.digits()]
        if None in parts or self.here() == ("symbol", "^"):
            self.place = start
            return whole
        return whole + parts[0] / parts[1]

    def digits(self) -> Fraction | None:
        """One digit, or a number in braces; None for anything else."""
        if self.take("{"):
            token = self.here()
            self.place += 1
            return Fraction(token[1]) if token and token[0] == "number" and self.take("}") else None
        return self.digit()

    def digit(self) -> Fraction | None:
        r"""One digit, which TeX splits from a longer number: \frac12 is 1/2."""
        token = self.here()
        if token is None or token[0] != "number":
            return None
        if len(token[1]) > 1:
            self.tokens[self.place] = ("number", token[1][1:])
        else:
            self.place += 1
        return Fraction(token[1][0])

    def argument(self) -> Number:
        """The operand of a command or ^: a group in braces, one digit, or one other token."""
        if self.take("{"):
            inner = self.sum()
            self.expect("}")
            return inner
        digit = self.digit()
        return self.factor() if digit is None else digit

    def letter(self, name: str) -> Number:
        if name in self.variables:
            return self.variables[name]
        if name in ("e", "i"):
            return math.e if name == "e" else 1j
        raise NoValue(f"{name} has no value")

    def command(self, name: str) -> Number:
        if name == "pi":
            return math.pi
        if name == "frac":
            return self.argument() / self.argument()
        if name == "binom":
            above, below = self.argument(), self.argument()
            return _factorial(above) / (_factorial(below) * _factorial(above - below))
        if name == "sqrt":
            return self.root()
        if name == "log":
            return self.logarithm()
        if name in _FUNCTIONS:
            return self.applied(_FUNCTIONS[name])
        raise NoValue(f"\\{name} is not known")

    def root(self) -> Number:
        index = Fraction(2)
        if self.take("["):
            index = self.sum()
            self.expect("]")
        return _power(self.argument(), 1 / index)

    def logarithm(self) -> Number:
        r"""Natural logarithm; a base \log_{b} arrives here as \log[b]."""
        if not self.take("["):
            return self.applied(cmath.log)
        base = self.sum()
        self.expect("]")
        return self.applied(cmath.log) / cmath.log(base)

    def applied(self, function) -> Number:
        r"""Apply a function to the next factor; \sin^2 x is (sin x)^2."""
        exponent = self.argument() if self.take("^") else None
        result = function(complex(self.power()))
        return result if exponent is None else _power(result, exponent)


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

"""Parse the overrides of a sweep in Hydra's grammar into fixed ones, lists of choices and intervals."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import config
from mindspore_impl.errors import UserError

PLAIN = "as configured"  # the title of a trial without choices


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high, both included. Only Optuna draws from it."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        text = f"interval({self.low},{self.high})"
        text = f"tag(log,{text})" if self.log else text
        return f"int({text})" if self.whole else text


@dataclass
class Space:
    """The parsed overrides of a sweep. Values stay override text, so that any type can be swept."""

    fixed: list[str] = field(default_factory=list)
    choices: dict[str, list[str]] = field(default_factory=dict)  # key: values
    intervals: dict[str, Interval] = field(default_factory=dict)

    def add(self, other: "Space") -> None:
        """Add what `other` varies, except for keys that are set here already: the command line wins."""
        given = {*self.choices, *self.intervals, *map(key_of, self.fixed)}
        self.choices |= {key: values for key, values in other.choices.items() if key not in given}
        self.intervals |= {key: interval for key, interval in other.intervals.items() if key not in given}

    def combinations(self) -> Iterator[list[str]]:
        """Every combination of choices as overrides; the last key varies fastest."""
        for values in itertools.product(*self.choices.values()):
            yield [f"{key}={value}" for key, value in zip(self.choices, values, strict=True)]

    def sample(self) -> list[str]:
        """The overrides of one point of the space, to check that its keys exist."""
        first = [f"{key}={values[0]}" for key, values in self.choices.items()]
        return first + [f"{key}={interval.low!r}" for key, interval in self.intervals.items()]

    def short_keys(self) -> dict[str, str]:
        """{varied key: its shortest unambiguous suffix}."""
        words = {key: re.split("[.@]", key) for key in (*self.choices, *self.intervals)}
        short = {}
        for key, parts in words.items():
            tails = (parts[-n:] for n in range(1, len(parts) + 1))
            fits = (tail for tail in tails if sum(other[-len(tail) :] == tail for other in words.values()) == 1)
            short[key] = ".".join(next(fits, parts))
        return short

    def title(self, overrides: list[str], name: str | None = None) -> str:
        """The choices of a trial in short; what a named trial sets itself is told by its name."""
        short, pairs = self.short_keys(), [text.partition("=") for text in overrides]
        choices = [f"{short[key]}={value}" for key, _, value in pairs if key in short]
        return ", ".join([name, *choices] if name else choices) or PLAIN

    def described(self, exact: bool) -> dict[str, str]:
        """Each varied key and how: "list" (which may grow when the sweep is continued), or exactly what."""
        lists = {key: ",".join(values) if exact else "list" for key, values in self.choices.items()}
        return lists | {key: str(value) for key, value in self.intervals.items()}


def key_of(override: str) -> str:
    """The key of an override, without its plus signs."""
    return override.partition("=")[0].lstrip("+")


def read_space(overrides: list[str], config_dir: Path | None = None) -> Space:
    """Parse `overrides`. Raises UserError for one that Hydra cannot read or that has no value."""
    space = Space()
    with config.override_parser(config_dir) as parse:
        for text in overrides:
            _add(space, text, parse(text))
    return space


def _add(space: Space, text: str, override) -> None:
    key = override.get_key_element().lstrip("+")
    for group in (space.choices, space.intervals):
        group.pop(key, None)  # as in a single run, the last override of a key counts
    if not override.is_sweep_override():
        space.fixed.append(text)
        return
    if key in ("run_dir", "sweep") or key.startswith("sweep."):
        raise UserError(f"{text}: {key} belongs to the whole sweep and has one value")
    if not override.is_discrete_sweep():
        found = override.value()
        whole = isinstance(found.start, int) and isinstance(found.end, int)
        interval = space.intervals[key] = Interval(found.start, found.end, "log" in found.tags, whole)
        if not -math.inf < interval.low < interval.high < math.inf or (interval.log and interval.low <= 0):
            raise UserError(f"{text}: an interval goes from a lower to a higher number, both above 0 where it is log")
        return
    values = list(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise UserError(f"{text}: no value to choose from; give at least one")
    space.choices[key] = values

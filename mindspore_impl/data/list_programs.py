"""The bundled task: execute a short program on a list of letters.

For instance:

    user       list d b a c apply reverse sort
    reasoning  reverse c a b d sort a b c d
    answer     a b c d

The SHA-256 of a problem determines its split, so the splits are disjoint for any seed, size and thinking mode.
"""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from math import perm

from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.errors import UserError
from mindspore_impl.schema import check_ranges
from mindspore_impl.text.records import Message, Record

LETTERS = "abcdefghijkl"
OPERATIONS = {
    "reverse": lambda letters: letters[::-1],
    "rotate_left": lambda letters: letters[1:] + letters[:1],
    "rotate_right": lambda letters: letters[-1:] + letters[:-1],
    "swap_ends": lambda letters: letters[-1:] + letters[1:-1] + letters[:1],
    "swap_first": lambda letters: letters[1::-1] + letters[2:],
    "swap_last": lambda letters: letters[:-2] + letters[:-3:-1],
    "sort": sorted,
}
NAMES = tuple(OPERATIONS)
SPLITS = ("train",) * 8 + ("validation", "test")  # tenths of all problems


def generate(options: ListProgramsSet, seed: int = 0) -> Iterator[Record]:
    """Records `skip` .. `skip + count - 1` of a split's sequence, which never repeats a problem.

    The sequence depends on (split, operations, length, seed) only: fast and reasoning records with the same numbers
    hold the same problems, and ranges that do not overlap hold different ones. Lists have `length - 1` or `length`
    letters and programs 1 .. `operations` steps, both drawn evenly. `noise` is the share of problems whose label has
    one swap of neighbours after a random step, carried through the steps after it; meta["answer"] is always right.

    seed: of order and noise, where the options have none. Raises UserError at once for a setting out of range, or when
    the split holds fewer than skip + count problems.
    """
    split, stop, seed = options.split, options.skip + options.count, seed if options.seed is None else options.seed
    if split not in SPLITS:
        raise UserError(f"list_programs: unknown split {split!r}; use one of {', '.join(dict.fromkeys(SPLITS))}")
    check_ranges(options, "list_programs")
    strata = _strata(options.operations, options.length)
    expected = sum(size for _, _, size in strata) * SPLITS.count(split) / len(SPLITS)
    if stop > 0.8 * expected and stop > (there := split_size(split, options.operations, options.length)):
        where = f"split {split} with operations={options.operations}, length={options.length}"
        raise UserError(f"list_programs: skip + count = {stop}, but {where} holds {there} problems; lower them")
    return (
        _record(f"list_programs/{split}/{seed}/{index}", *problem, options.thinking, options.noise, seed)
        for index, problem in islice(enumerate(_problems(split, strata, seed)), options.skip, stop)
    )


def execute(letters: list[str], operations: list[str]) -> list[str]:
    """The list after all operations."""
    letters = list(letters)
    for name in operations:
        letters = OPERATIONS[name](letters)
    return letters


def split_of(letters: list[str], operations: list[str]) -> str:
    """The split of a problem. Never changes, or data sets could not be made again."""
    return SPLITS[_digest(_canonical(letters, operations)) % len(SPLITS)]


def split_size(split: str, operations: int, length: int) -> int:
    """Number of different problems of a split, by enumeration (about a microsecond per problem)."""
    return sum(
        split_of(*_problem(number, size, steps)) == split
        for size, steps, total in _strata(operations, length)
        for number in range(total)
    )


def _strata(operations: int, length: int) -> list[tuple[int, int, int]]:
    """(letters, steps, number of problems) of each kind of problem."""
    return [
        (size, steps, perm(len(LETTERS), size) * len(NAMES) ** steps)
        for size in (length - 1, length)
        for steps in range(1, operations + 1)
    ]


def _problem(number: int, size: int, steps: int) -> tuple[list[str], list[str]]:
    """Problem `number` of a stratum: mixed-radix digits pick the operations and, without replacement, the letters."""
    operations, letters, left = [], [], list(LETTERS)
    for _ in range(steps):
        number, digit = divmod(number, len(NAMES))
        operations.append(NAMES[digit])
    for _ in range(size):
        number, digit = divmod(number, len(left))
        letters.append(left.pop(digit))
    return letters, operations


def _canonical(letters: list[str], operations: list[str]) -> str:
    return " ".join((*letters, "|", *operations))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _permuted(total: int, key: int) -> Iterator[int]:
    """A permutation of 0 .. total-1 given by `key`: a Feistel network on the next even number of bits."""
    half = max(1, (max(total - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = [(key >> 16 * turn & 0xFFFF) * 2 + 1 for turn in range(4)]
    for start in range(1 << 2 * half):
        left, right = start >> half, start & mask
        for turn_key in keys:
            mixed = (right + turn_key) * 0x9E3779B1 & 0xFFFFFFFF
            left, right = right, left ^ ((mixed ^ mixed >> 15) * 0x85EBCA77 >> 13 & mask)
        if (number := left << half | right) < total:
            yield number


def _problems(split: str, strata: list[tuple[int, int, int]], seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Every problem of a split once, drawn evenly from all strata until one is exhausted."""

    def walk(size: int, steps: int, total: int) -> Iterator[tuple[list[str], list[str]]]:
        for number in _permuted(total, _digest(f"order {seed} {size} {steps}")):
            problem = _problem(number, size, steps)
            if split_of(*problem) == split:
                yield problem

    walks = [walk(*stratum) for stratum in strata]
    draw = random.Random(_digest(f"kinds {seed} {split}"))
    while walks:
        chosen = draw.randrange(len(walks))
        try:
            yield next(walks[chosen])
        except StopIteration:
            del walks[chosen]


def _record(identity, letters, operations, thinking, noise, seed) -> Record:
    states, now, slip = [], letters, _slip(letters, operations, noise, seed)
    for step, name in enumerate(operations):
        now = OPERATIONS[name](list(now))
        if slip and slip[0] == step:
            now[slip[1] : slip[1] + 2] = now[slip[1] + 1], now[slip[1]]
        states.append(now)
    reasoning = " ".join(f"{name} {' '.join(state)}" for name, state in zip(operations, states, strict=True))
    messages = (
        Message("user", f"list {' '.join(letters)} apply {' '.join(operations)}"),
        Message("assistant", " ".join(states[-1]), reasoning if thinking == "reasoning" else None),
    )
    meta = {"task": "list_programs", "letters": letters, "operations": operations}
    meta["answer"] = " ".join(execute(letters, operations))
    return Record(identity, messages, thinking, meta)


def _slip(letters: list[str], operations: list[str], noise: float, seed: int) -> tuple[int, int] | None:
    """(step, position) of the wrong swap in a noisy label, or None: a pure function of problem and seed."""
    draw = _digest(f"noise {seed} {_canonical(letters, operations)}")
    chance, rest = draw & 0xFFFFFFFF, draw >> 32
    if chance >= noise * 2**32:
        return None
    step, rest = rest % len(operations), rest // len(operations)
    return step, rest % (len(letters) - 1)

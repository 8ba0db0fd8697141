"""Mixture weights: how many records of each group are kept, or how often each is repeated."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import Literal

import numpy as np

from mindspore_impl.data.selection.stream import Context, Drop, Group, Item, group_of, step
from mindspore_impl.data.selection.words import hash64
from mindspore_impl.schema import option
from mindspore_impl.text.records import parse_record, record_to_json

BINS = 1 << 16  # of the hashes' leading bits, which decide what is kept without holding the records


@dataclass
class MixtureOptions:
    """Shares of groups, e.g. {reasoning: 3, fast: 1}; a hash of the id decides which records of a group are kept."""

    weights: dict[str, float] = option(above=0)
    by: Group = "thinking"
    how: Literal["down", "repeat"] = "down"  # drop from groups that are too large, or repeat records of those too small
    total: int | None = None  # records in all; null: as many as `how` gives
    seed: int = 0


@step
def mixture(options: MixtureOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Brings the groups to the given shares.

    The records are buffered in a scratch file while they are counted. Of each group those with the smallest hashes of
    (seed, id) are kept, so the choice does not depend on their order. The id of a second copy ends with `#2`.
    """
    if not options.weights:
        raise context.refuse("weights: name groups with numbers above 0")
    counts = {name: np.zeros(BINS, np.int64) for name in options.weights}
    with TemporaryFile("w+", dir=context.scratch, encoding="utf-8") as file:
        for item in items:
            group = group_of(item, options.by)
            if group not in counts:
                raise context.refuse(f"{item.place}: its {options.by} {group!r} is not in weights; add it")
            counts[group][_bin(item, options)] += 1
            file.write(json.dumps([item.set, item.place, record_to_json(item.record)], ensure_ascii=False) + "\n")
        asked = _asked({name: int(bins.sum()) for name, bins in counts.items()}, options, context)
        quotas = {name: _copies(bins, asked[name]) for name, bins in counts.items()}
        file.seek(0)
        given = Counter()
        for line in file:
            set_name, place, plain = json.loads(line)
            item = Item(parse_record(plain, place), set_name, place)
            group = group_of(item, options.by)
            copies = quotas[group](_bin(item, options))
            given[group] += copies
            if not copies:
                context.drop(item, Drop(f"more of {group} than the mixture asks for"))
            for copy in range(copies):
                record = item.record if not copy else replace(item.record, id=f"{item.record.id}#{copy + 1}")
                yield Item(record, set_name, place)
    context.notes["weights"] = options.weights
    context.notes["given"] = {name: given[name] for name in options.weights}


def _bin(item: Item, options: MixtureOptions) -> int:
    return hash64(f"{options.seed} {item.record.id}") >> 48


def _asked(sizes: dict[str, int], options: MixtureOptions, context: Context) -> dict[str, int]:
    if empty := [name for name, size in sizes.items() if not size]:
        raise context.refuse(f"weights names the {options.by} {empty[0]!r}, and no record of it is left")
    shares = {name: weight / sum(options.weights.values()) for name, weight in options.weights.items()}
    totals = [sizes[name] / share for name, share in shares.items()]
    total = options.total or (min(totals) if options.how == "down" else max(totals))
    asked = {name: round(total * share) for name, share in shares.items()}
    for name, number in asked.items() if options.how == "down" else ():
        if number > sizes[name]:
            fault = f"total={options.total} asks for {number} records of {name!r}, and there are {sizes[name]}"
            raise context.refuse(f"{fault}; lower it, or use how: repeat")
    return asked


def _copies(bins: np.ndarray, asked: int) -> Callable[[int], int]:
    """A function from the bin of the next record to its copies: all equally many, the smallest hashes one more.

    bins: int [BINS], records of each bin. asked: copies of all records together.
    """
    times, extra = divmod(asked, int(bins.sum()))
    below = np.concatenate([[0], np.cumsum(bins)])
    edge = int(np.searchsorted(below[1:], extra, side="right"))  # only some records of this bin get one more
    spare = iter(range(extra - int(below[edge])))

    def copies(at: int) -> int:
        return times + (at < edge or at == edge and next(spare, None) is not None)

    return copies

"""Steps that compare records: exact and near duplicates, of which the first is kept, and decontamination."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindspore_impl.data.selection.stream import Context, Drop, Group, Item, Part, group_of, step
from mindspore_impl.data.selection.words import IdBook, hash64, ngram_hashes, words
from mindspore_impl.schema import option

RECALL = 0.99  # of pairs at the threshold


@dataclass
class ExactDuplicatesOptions:
    """Equal text but for case and white space; the first is kept. Memory: a hash and a position per record."""

    of: Part = "conversation"
    apart: Group | None = None  # compare within such groups only; null: all with all


@step
def exact_duplicates(options: ExactDuplicatesOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Drops texts that are equal but for case and white space. Punctuation counts: 2 + 3 is not 2 - 3.

    Two different texts share a 64-bit hash with probability n^2 / 2^65: 3e-8 for a million records.
    """
    first, ids = {}, IdBook(context.scratch)
    for item in items:
        text = item.text(options.of).lower().split()
        key = hash64(" ".join([group_of(item, options.apart), *text] if options.apart else text))
        if (position := first.get(key)) is not None:
            context.drop(item, Drop(f"exact duplicate of an earlier {options.of}", other=ids.find(position)))
            continue
        first[key] = ids.add(item.record.id)
        yield item


@dataclass
class NearDuplicatesOptions:
    """Jaccard similarity of the word n-grams with a kept record; the first is kept. Needs extra `select`."""

    of: Part = "conversation"
    threshold: float = option(0.8, above=0, high=1)
    ngram: int = option(3, low=1)  # words
    permutations: int = 96  # MinHash values per record
    apart: Group | None = None  # compare within such groups only; null: all with all
    seed: int = 1

    def __post_init__(self):
        self.bands = band_shape(self.threshold, self.permutations)


@step
def near_duplicates(options: NearDuplicatesOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Drops records whose set of word n-grams has a Jaccard similarity of `threshold` or more with a kept record.

    Candidates come from a MinHash index whose bands find a pair at the threshold with a probability of 99 %; the exact
    similarity of each candidate then decides. Memory: some KB per kept record (`tools/benchmark.py select_data`
    measures it). Raises UserError where datasketch is not installed.
    """
    try:
        from datasketch import LeanMinHash, MinHashLSH
    except ImportError as error:
        raise context.refuse("needs datasketch; pip install 'openpangu-posttrain[select]'") from error
    count = options.bands[0] * options.bands[1]
    sign = signer(count, options.seed)
    indexes = defaultdict(lambda: MinHashLSH(num_perm=count, params=options.bands))
    ids, runs_of = IdBook(context.scratch), {}

    def repeated(item: Item) -> Drop | None:
        """The drop of a repetition; None for another text, which enters the index."""
        runs = shingles(item.word_hashes(options.of), options.ngram)
        if not len(runs):
            return None
        index = indexes[group_of(item, options.apart) if options.apart else ""]
        signature = LeanMinHash(seed=options.seed, hashvalues=sign(runs), scheme="legacy")
        for position in sorted(index.query(signature)):
            similarity = jaccard(runs, np.frombuffer(runs_of[position], np.uint32))
            if similarity >= options.threshold:
                reason = f"near duplicate of an earlier {options.of}"
                return Drop(reason, f"similarity {similarity:.3f}", ids.find(position))
        position = ids.add(item.record.id)
        runs_of[position] = runs.tobytes()
        index.insert(position, signature, check_duplication=False)
        return None

    for item in items:
        if drop := repeated(item):
            context.drop(item, drop)
        else:
            yield item


def band_shape(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows) with the most rows, so the fewest candidates, that find a pair at the threshold with RECALL.

    Raises ValueError when there is none.
    """
    for rows in range(permutations // 2, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    raise ValueError(f"permutations={permutations} cannot find pairs of similarity {threshold}; raise it")


def shingles(hashes: np.ndarray, size: int) -> np.ndarray:
    """Sorted hashes (uint32) of all n-grams of `size` words (uint64 hashes); a shorter text is one n-gram."""
    return np.unique((ngram_hashes(hashes, min(size, len(hashes)) or 1) >> np.uint64(32)).astype(np.uint32))


def signer(count: int, seed: int):
    """A function from a set of uint32 hashes to `count` MinHash values (uint32): minima of h * odd factor + shift."""
    generator = np.random.default_rng(seed)
    factors = generator.integers(0, 1 << 31, count, np.uint32) * np.uint32(2) + np.uint32(1)
    shifts = generator.integers(0, 1 << 32, count, np.uint32)
    return lambda hashes: np.min(hashes[:, None] * factors + shifts, axis=0)


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Intersection over union of two sorted sets."""
    shared = len(left) + len(right) - len(np.union1d(left, right))
    return shared / (len(left) + len(right) - shared)


@dataclass
class DecontaminateOptions:
    """A word n-gram shared with a record of an evaluation set, without case and punctuation."""

    against: list[str] = option(artifact="set")  # sets of the recipe
    of: Part = "conversation"
    evaluation: Part = "prompt"
    ngram: int = 13  # words; a shorter evaluation text is searched for as a whole
    min_words: int = option(5, low=1)  # evaluation texts with fewer words are ignored

    def __post_init__(self):
        if self.min_words > self.ngram or not self.against:
            raise ValueError("min_words must not exceed ngram, and against name at least one evaluation set")


@step
def decontaminate(options: DecontaminateOptions, context: Context, items: Iterator[Item]) -> Iterator[Item]:
    """Drops a record that shares `ngram` words in a row with an evaluation text, or contains all of a shorter text.

    Memory: 8 bytes and an id for each n-gram of the evaluation sets; nothing for the training records.
    """
    owners: dict[int, dict[int, tuple[str, str]]] = {}  # words of the n-gram: its hash: (set, id)
    compared = ignored = 0
    for name in options.against:
        for item in context.records(name):
            hashes = item.word_hashes(options.evaluation)
            size = min(options.ngram, len(hashes))
            if size < options.min_words:
                ignored += 1
                continue
            compared += 1
            table = owners.setdefault(size, {})
            for key in ngram_hashes(hashes, size).tolist():
                table.setdefault(key, (name, item.record.id))
    context.notes["evaluation records"] = compared
    context.notes |= {"evaluation records shorter than min_words": ignored} if ignored else {}
    if not compared:
        raise context.refuse(f"no record of {', '.join(options.against)} has {options.min_words} words or more")
    for item in items:
        hashes = item.word_hashes(options.of)
        for size, table in owners.items():
            keys = ngram_hashes(hashes, size).tolist()
            if not table.keys().isdisjoint(keys):
                at, (name, identity) = next((at, table[key]) for at, key in enumerate(keys) if key in table)
                shared = " ".join(words(item.text(options.of))[at : at + size])
                context.drop(item, Drop(f"shares {size} words in a row with a record of {name}", shared, identity))
                break
        else:
            yield item

"""Steps that compare records: exact and near duplicates, of which the first is kept, and decontamination."""

import numpy as np

from mindspore_impl.data.selection.options import (
    DecontaminateOptions,
    ExactDuplicatesOptions,
    NearDuplicatesOptions,
)
from mindspore_impl.data.selection.stream import Check, Context, Drop, Item, group_of
from mindspore_impl.data.selection.words import IdBook, hash64, ngram_hashes, words
from mindspore_impl.errors import UserError

RECALL = 0.99  # of pairs at the threshold


def exact(options: ExactDuplicatesOptions, context: Context) -> Check:
    """Drops texts that are equal but for case and white space. Punctuation counts: 2 + 3 is not 2 - 3.

    Two different texts share a 64-bit hash with probability n^2 / 2^65: 3e-8 for a million records.
    """
    first, ids, drop = {}, IdBook(context.scratch), Drop(f"exact duplicate of an earlier {options.of}")

    def check(item: Item) -> Drop | None:
        text = item.text(options.of).lower().split()
        key = hash64(" ".join([group_of(item, options.apart), *text] if options.apart else text))
        position = first.get(key)
        if position is not None:
            return drop._replace(other=ids.find(position))
        first[key] = ids.add(item.record.id)
        return None

    return check


def near(options: NearDuplicatesOptions, context: Context) -> Check:
    """Drops records whose set of word n-grams has a Jaccard similarity of `threshold` or more with a kept record.

    Candidates come from a MinHash index whose bands find a pair at the threshold with a probability of 99 %; the exact
    similarity of each candidate then decides. Memory: some KB per kept record (`tools/benchmark.py select_data`
    measures it). Raises UserError where datasketch is not installed.
    """
    try:
        from datasketch import LeanMinHash, MinHashLSH
    except ImportError as error:
        raise context.refuse("needs datasketch; pip install 'openpangu-posttrain[select]'") from error
    if not 0 < options.threshold <= 1 or options.ngram < 1:
        raise context.refuse(f"threshold={options.threshold} must be above 0 and at most 1, ngram={options.ngram} >= 1")
    bands, rows = band_shape(options.threshold, options.permutations, context)
    indexes = {}
    sign = signer(bands * rows, options.seed)
    ids, runs_of = IdBook(context.scratch), {}
    drop = Drop(f"near duplicate of an earlier {options.of}")

    def check(item: Item) -> Drop | None:
        runs = shingles(item.word_hashes(options.of), options.ngram)
        if not len(runs):
            return None
        group = group_of(item, options.apart) if options.apart else ""
        if group not in indexes:
            indexes[group] = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
        signature = LeanMinHash(seed=options.seed, hashvalues=sign(runs), scheme="legacy")
        for position in sorted(indexes[group].query(signature)):
            similarity = jaccard(runs, np.frombuffer(runs_of[position], np.uint32))
            if similarity >= options.threshold:
                return drop._replace(detail=f"similarity {similarity:.3f}", other=ids.find(position))
        position = ids.add(item.record.id)
        runs_of[position] = runs.tobytes()
        indexes[group].insert(position, signature, check_duplication=False)
        return None

    return check


def band_shape(threshold: float, permutations: int, context: Context) -> tuple[int, int]:
    """(bands, rows) with the most rows, so the fewest candidates, that find a pair at the threshold with RECALL."""
    for rows in range(permutations // 2, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    raise UserError(
        f"{context.where}: {permutations} permutations cannot find pairs of similarity {threshold}; raise permutations"
    )


def shingles(hashes: np.ndarray, size: int) -> np.ndarray:
    """Sorted hashes (uint32) of all n-grams of `size` words (uint64 hashes); a shorter text is one n-gram."""
    return np.unique((ngram_hashes(hashes, min(size, len(hashes)) or 1) >> np.uint64(32)).astype(np.uint32))


def signer(count: int, seed: int):
    """A function from a set of uint32 hashes to `count` MinHash values (uint32): minima of h * odd factor + shift."""
    generator = np.random.default_rng(seed)
    factors = generator.integers(0, 1 << 31, count, np.uint32) * np.uint32(2) + np.uint32(1)
    shifts = generator.integers(0, 1 << 32, count, np.uint32)

    def sign(hashes: np.ndarray) -> np.ndarray:
        return np.min(hashes[:, None] * factors + shifts, axis=0)

    return sign


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Intersection over union of two sorted sets."""
    shared = len(left) + len(right) - len(np.union1d(left, right))
    return shared / (len(left) + len(right) - shared)


def decontaminate(options: DecontaminateOptions, context: Context) -> Check:
    """Drops a record that shares `ngram` words in a row with an evaluation text, or contains all of a shorter text.

    Memory: 8 bytes and an id for each n-gram of the evaluation sets; nothing for the training records.
    """
    if not 1 <= options.min_words <= options.ngram:
        raise context.refuse(f"min_words={options.min_words} must be 1 or more, and at most ngram={options.ngram}")
    if not options.against:
        raise context.refuse("against: name at least one evaluation set of data.sets")
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
    if ignored:
        context.notes["evaluation records shorter than min_words"] = ignored
    if not compared:
        raise context.refuse(f"no record of {', '.join(options.against)} has {options.min_words} words or more")

    def check(item: Item) -> Drop | None:
        hashes = item.word_hashes(options.of)
        for size, table in owners.items():
            keys = ngram_hashes(hashes, size).tolist()
            if not table.keys().isdisjoint(keys):
                at, (name, identity) = next((at, table[key]) for at, key in enumerate(keys) if key in table)
                shared = " ".join(words(item.text(options.of))[at : at + size])
                return Drop(f"shares {size} words in a row with a record of {name}", shared, identity)
        return None

    return check

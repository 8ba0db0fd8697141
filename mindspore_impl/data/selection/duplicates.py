"""Exact and near duplicates: of those that say the same, the first stays and the report names both."""

import numpy as np

from mindspore_impl.data.selection.options import ExactDuplicatesOptions, NearDuplicatesOptions
from mindspore_impl.data.selection.stream import Check, Context, Drop, Item, group_of
from mindspore_impl.data.selection.words import IdBook, hash64, ngram_hashes
from mindspore_impl.errors import UserError

RECALL = 0.99  # of pairs at the threshold that must meet in a band


def exact(options: ExactDuplicatesOptions, context: Context) -> Check:
    """The same text but for case and white space. Punctuation and digits count: 2 + 3 is not 2 - 3.

    Two different texts meet in 64 bits with a chance of n^2 / 2^65: 3e-8 for a million records.
    """
    first, ids, drop = {}, IdBook(context.scratch), Drop(f"exact duplicate of an earlier {options.of}")
    apart = options.apart

    def check(item: Item) -> Drop | None:
        words = item.text(options.of).lower().split()
        key = hash64(" ".join([group_of(item, apart), *words] if apart else words))
        position = first.get(key)
        if position is not None:
            return drop._replace(other=ids.find(position))
        first[key] = ids.add(item.record.id)
        return None

    return check


def near(options: NearDuplicatesOptions, context: Context) -> Check:
    """Jaccard similarity of the sets of word runs at or above the threshold, with a record that stays.

    Candidates come from a MinHash index with bands narrow enough that a pair at the threshold is found with 99 %;
    each is then compared by its whole set, so that what is dropped is as similar as it is said to be.
    Holds some KB of each kept record (`tools/benchmark.py select_data` counts them). Raises UserError where datasketch
    is not installed.
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
    """(bands, rows): the widest bands, so the fewest candidates, that find a pair at the threshold with RECALL."""
    for rows in range(permutations // 2, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    raise UserError(
        f"{context.where}: {permutations} permutations cannot find pairs of similarity {threshold}; raise permutations"
    )


def shingles(hashes: np.ndarray, size: int) -> np.ndarray:
    """The sorted set of hashes (uint32) of all runs of `size` words (uint64 hashes); a shorter text is one run."""
    return np.unique((ngram_hashes(hashes, min(size, len(hashes)) or 1) >> np.uint64(32)).astype(np.uint32))


def signer(count: int, seed: int):
    """A function from a set of uint32 hashes to `count` MinHash values (uint32): minima of odd multiples, shifted."""
    generator = np.random.default_rng(seed)
    factors = generator.integers(0, 1 << 31, count, np.uint32) * np.uint32(2) + np.uint32(1)
    shifts = generator.integers(0, 1 << 32, count, np.uint32)

    def sign(hashes: np.ndarray) -> np.ndarray:
        return np.min(hashes[:, None] * factors + shifts, axis=0)

    return sign


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Shared over all members of two sorted sets."""
    shared = len(left) + len(right) - len(np.union1d(left, right))
    return shared / (len(left) + len(right) - shared)

"""Decontamination: a training record that shares a run of words with an evaluation record goes."""

from mindspore_impl.data.selection.options import DecontaminateOptions
from mindspore_impl.data.selection.stream import Check, Context, Drop, Item
from mindspore_impl.data.selection.words import ngram_hashes, words


def sets(options: DecontaminateOptions) -> list[str]:
    """The evaluation sets."""
    return options.against


def against(options: DecontaminateOptions, context: Context) -> Check:
    """Drops a record that holds any `ngram` words in a row of an evaluation text, or all of a shorter text.

    Holds 8 bytes and an id for each run of the evaluation sets; nothing of the training records.
    """
    if not 1 <= options.min_words <= options.ngram:
        raise context.refuse(f"min_words={options.min_words} must be 1 or more, and at most ngram={options.ngram}")
    if not options.against:
        raise context.refuse("against: name at least one evaluation set of data.sets")
    owners: dict[int, dict[int, tuple[str, str]]] = {}  # words in the run: hash of the run: (set, id)
    compared = ignored = 0
    for name in options.against:
        for item in context.records(name):
            hashes = item.word_hashes(options.evaluation)
            size = min(options.ngram, len(hashes))
            if size < options.min_words:
                ignored += 1
                continue
            compared += 1
            table, owner = owners.setdefault(size, {}), (name, item.record.id)
            for key in ngram_hashes(hashes, size).tolist():
                table.setdefault(key, owner)
    context.notes["evaluation records"] = compared
    if ignored:
        context.notes["evaluation records too short to be looked for"] = ignored
    if not compared:
        raise context.refuse(f"no record of {', '.join(options.against)} has {options.min_words} words or more")

    def check(item: Item) -> Drop | None:
        hashes = item.word_hashes(options.of)
        for size, table in owners.items():
            keys = ngram_hashes(hashes, size)
            if len(keys) and not table.keys().isdisjoint(listed := keys.tolist()):
                at = next(index for index, key in enumerate(listed) if key in table)
                return _found(table[listed[at]], size, words(item.text(options.of))[at : at + size])
        return None

    return check


def _found(owner: tuple[str, str], size: int, shared: list[str]) -> Drop:
    name, identity = owner
    return Drop(f"shares {size} words in a row with a record of {name}", " ".join(shared), identity)

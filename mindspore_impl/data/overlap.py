"""Records that a training set and a held-out set have in common."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mindspore_impl.data.options import DatasetOptions, FileSet
from mindspore_impl.text.records import Record


def window_problems(
    sets: Mapping[str, DatasetOptions], trained: Mapping[str, str], held_out: Mapping[str, str]
) -> Iterator[str]:
    """Held-out sets that read the same part of a file as a training set, found without reading any file.

    trained, held_out: {name of a set: the configuration key that names it}.
    """
    for held, key in held_out.items():
        if shared := [name for name in trained if _same_window(sets[name], sets[held])]:
            fault = f"{held!r} reads records of {sets[held].path} that {', '.join(shared)} train on"
            remedy = f"set the same holdout on all, with split=validation on {held!r}, or skip and count apart"
            yield f"{key}: {fault} ({trained[shared[0]]}); {remedy}"


def _same_window(train: DatasetOptions, held: DatasetOptions) -> bool:
    """Whether two sets certainly share records. A set with `keep` is not judged: bands may exclude each other."""
    if not isinstance(train, FileSet) or not isinstance(held, FileSet) or train.keep or held.keep:
        return False
    if Path(train.path).resolve() != Path(held.path).resolve():
        return False
    if train.split != held.split:
        of_train, of_end = (train, held) if train.split == "train" else (held, train)
        return of_train.count is None and of_train.holdout < of_end.holdout
    if train.split == "validation" and train.holdout != held.holdout:
        return train.count is held.count is None
    first, second = sorted((train, held), key=lambda options: options.skip)
    return first.count is None or second.skip < first.skip + first.count


def shared_count(train: Iterable[Record], held_out: Iterable[Record]) -> int:
    """How many held-out records have the messages of a training record; reasoning and thinking mode do not count."""

    def messages(record: Record) -> tuple:
        return tuple((message.role, message.content) for message in record.messages)

    known = set(map(messages, train))
    return sum(messages(record) in known for record in held_out)

"""Diversity by compression: what zlib can say in few bytes says little new."""

import zlib

from mindspore_impl.data.selection.options import CompressionOptions
from mindspore_impl.data.selection.stream import Check, Context, Drop, Item, group_of


def compression(options: CompressionOptions, context: Context) -> Check:
    """Compressed over plain size, of each record alone or as it follows those that its group kept.

    With a group, the compressor carries the last 32 KB of the kept texts, so a record that says the same again as one
    of them is small; a record that is dropped leaves no trace in it.
    """
    of, least, most, shortest = options.of, options.min_ratio, options.max_ratio, options.min_characters
    if least < 0 or most is not None and most <= least:
        raise context.refuse(f"min_ratio={least} must be 0 or more, and max_ratio={most} larger")
    low = Drop(f"compresses below {least:g} of its size")
    high = Drop(f"compresses to more than {most:g} of its size") if most is not None else None
    histories: dict = {}

    def check(item: Item) -> Drop | None:
        text = item.text(of)
        if len(text) < shortest:
            return None
        data = text.encode("utf-8", "surrogatepass")
        if options.over == "record":
            size = len(zlib.compress(data, 6))
        else:
            group = group_of(item, options.over)
            follower = histories[group].copy() if group in histories else zlib.compressobj(6)
            size = len(follower.compress(data)) + len(follower.flush(zlib.Z_SYNC_FLUSH))
        ratio = size / len(data)
        if ratio < least:
            return low._replace(detail=f"{ratio:.3f}")
        if high and ratio > most:
            return high._replace(detail=f"{ratio:.3f}")
        if options.over != "record":
            histories[group] = follower
        return None

    return check

"""Rules that look at one record: each makes a function from an Item to a Drop, or to None for one that stays."""

from pathlib import Path

from mindspore_impl.data.selection.options import LengthOptions
from mindspore_impl.data.selection.stream import Check, Context, Drop, Item


def length(options: LengthOptions, context: Context) -> Check:
    """Too short or too long, in characters or in tokens of the given tokenizer."""
    of, least, most = options.of, options.min_characters, options.max_characters
    if (options.tokenizer is None) != (options.min_tokens is None and options.max_tokens is None):
        raise context.refuse("min_tokens and max_tokens need `tokenizer`, and a tokenizer needs one of them")
    short = Drop(f"{of} shorter than {least} characters")
    long = Drop(f"{of} longer than {most} characters")
    in_tokens = _length_in_tokens(options) if options.tokenizer else None

    def check(item: Item) -> Drop | None:
        text = item.text(of)
        if len(text) < least:
            return short
        if most is not None and len(text) > most:
            return long
        return in_tokens(text) if in_tokens else None

    return check


def tokenizer_files(options: LengthOptions) -> list[str]:
    """The tokenizer decides what stays, so its hash belongs to the selection."""
    return [options.tokenizer] if options.tokenizer else []


def _length_in_tokens(options: LengthOptions):
    from mindspore_impl.text.tokenizer import Tokenizer

    tokenizer, least, most = Tokenizer(Path(options.tokenizer)), options.min_tokens, options.max_tokens

    def check(text: str) -> Drop | None:
        count = len(tokenizer.encode(text))
        if least is not None and count < least:
            return Drop(f"{options.of} shorter than {least} tokens", f"{count} tokens")
        if most is not None and count > most:
            return Drop(f"{options.of} longer than {most} tokens", f"{count} tokens")
        return None

    return check

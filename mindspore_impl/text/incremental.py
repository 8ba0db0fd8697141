"""Incremental detokenisation: ids in, text out, never half a character."""

from mindspore_impl.text.chat import thinking_ids
from mindspore_impl.text.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character


class TextStream:
    """Takes the ids of one answer and gives its text as ("reasoning" | "answer", text), as soon as it is certain.

    Special pieces have no text; half a character waits for its rest, or for `close`. See `chat.parse_completion`.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.think_start, self.think_end = thinking_ids(tokenizer)
        self.silent = {*tokenizer.special.values(), tokenizer.bos_id}
        self.kind = "answer"
        self.ids: list[int] = []  # since the last special piece
        self.shown = ""  # of their text

    def feed(self, token_id: int) -> list[tuple[str, str]]:
        """The parts that this id makes certain, often one, sometimes none."""
        if token_id not in self.silent:
            self.ids.append(token_id)
            text = self.tokenizer.decode(self.ids)
            return [] if text.endswith(UNFINISHED) else self._show(text)
        parts = self.close()
        if token_id in (self.think_start, self.think_end) and token_id is not None:
            self.kind = "reasoning" if token_id == self.think_start else "answer"
        return parts

    def close(self) -> list[tuple[str, str]]:
        """What was held back, at the end of a span or of the answer."""
        parts = self._show(self.tokenizer.decode(self.ids))
        self.ids, self.shown = [], ""
        return parts

    def _show(self, text: str) -> list[tuple[str, str]]:
        new, self.shown = text[len(self.shown) :], text
        return [(self.kind, new)] if new else []

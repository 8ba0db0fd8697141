"""Interactive chat over any Decoder: history, thinking mode, streamed answers."""

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from mindspore_impl.errors import UserError
from mindspore_impl.generation.decoder import Decoder, Drawing, stream
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import parse_completion, render_prompt
from mindspore_impl.text.incremental import TextStream
from mindspore_impl.text.records import THINKING, Message, check_text
from mindspore_impl.text.tokenizer import Tokenizer

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
HELP = "/think switches reasoning and fast, /reset forgets the conversation, /exit leaves; Ctrl-C stops an answer"


class Conversation:
    """A conversation with one model. `thinking` may change between turns; `messages` is the history."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, sampling: SamplingOptions, seed: int, thinking: str,
        system: str | None = None,
    ):  # fmt: skip
        self.decoder, self.tokenizer, self.sampling = decoder, tokenizer, sampling
        self.seed, self.thinking, self.system = seed, thinking, system and check_text(system, "the system turn")
        self.drawing = Drawing(tokenizer, decoder.vocab_size)
        self.reset()

    def reset(self) -> None:
        """Remove every turn but the system's."""
        self.messages: list[Message] = [] if self.system is None else [Message("system", self.system)]

    def ask(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield the answer to `text` as ("reasoning" | "answer", text) parts.

        The turn enters the history when the answer ends or the caller closes the generator. Raises UserError, the
        history untouched, when the conversation no longer fits or `text` is not valid Unicode text.
        """
        return self._answer(Message("user", check_text(text, "the prompt")))

    def _answer(self, question: Message) -> Iterator[tuple[str, str]]:
        prompt = render_prompt([*self.messages, question], self.tokenizer, self.thinking)
        room = max(1, self.decoder.slots - len(prompt))
        sampling = dataclasses.replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        ids, shown = [], TextStream(self.tokenizer)
        try:
            for token_id in stream(self.decoder, self.drawing, prompt, sampling, self.seed + len(self.messages)):
                ids.append(token_id)
                yield from shown.feed(token_id)
            yield from shown.close()
        finally:
            if ids:
                found = parse_completion(ids, self.tokenizer)
                self.messages += [question, Message("assistant", found.answer, found.reasoning or None)]


def answer(conversation: Conversation, text: str, out: TextIO) -> None:
    """Stream one answer to `out`, reasoning dimmed on a terminal. Ctrl-C stops it."""
    terminal, last = out.isatty(), None
    parts = conversation.ask(text)
    # While a graph runs MindSpore answers SIGINT with SIGTERM to its own process: both are a Ctrl-C here.
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for kind, part in parts:
            if kind != last:
                out.write("\n" if last == "reasoning" else "")
                out.write((DIM if kind == "reasoning" else PLAIN) if terminal else "")
                last = kind
            out.write(part)
            out.flush()
    except KeyboardInterrupt:
        parts.close()
    finally:
        signal.signal(signal.SIGTERM, terminate)
        out.write((PLAIN if terminal else "") + "\n")
        out.flush()


def converse(conversation: Conversation, read: Callable[[str], str] = input, out: TextIO | None = None) -> None:
    """Read turns until /exit or the end of input.

    A turn that does not fit, or is not valid text, is refused in a line; the conversation continues.
    """
    out = out or sys.stdout
    out.write(HELP + "\n")
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            out.write("\n")
            return
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
        elif text == "/think":
            conversation.thinking = THINKING[1 - THINKING.index(conversation.thinking)]
            out.write(conversation.thinking + "\n")
        elif text.startswith("/") and len(text.split()) == 1:
            out.write(HELP + "\n")
        elif text:
            try:
                answer(conversation, text, out)
            except UserError as error:
                out.write(f"{error} (/reset forgets the conversation)\n")

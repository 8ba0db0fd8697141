"""The Pangu chat template and its supervised mask: the only place that arranges turns, and the only maker of Samples.

    <s>[unused9]系统：...[unused10]
    [unused9]用户：... /no_think[unused10]
    [unused9]助手：[unused16]...[unused17]...[unused10]          (no line breaks between the turns)

- Without a system message an empty system turn is inserted.
- Fast mode ends the last user turn with " /no_think" and leaves the thinking span empty. Reasoning mode adds nothing.
- Every assistant turn of a training record is supervised: its thinking span, its answer and its closing piece.
- Earlier assistant turns are rendered like the last one, with their reasoning in reasoning mode and an empty span in
  fast mode, in training and in prompts alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Message, Record
from mindspore_impl.text.template import ROLE_HEADERS, SWITCHES, THINK_END, THINK_START, TURN_END, TURN_START
from mindspore_impl.text.tokenizer import Tokenizer


@dataclass
class Sample:
    """One rendered sequence. ids: int32 [L], one BOS first; supervised: bool [L], True where the id is learned."""

    ids: np.ndarray
    supervised: np.ndarray
    record_id: str
    thinking: str


@dataclass(frozen=True)
class Completion:
    """A generated answer taken apart.

    finished: it ends with [unused10]. well_formed: exactly [unused16] reasoning [unused17] answer, with or without the
    closing piece.
    """

    reasoning: str
    answer: str
    finished: bool
    well_formed: bool


@dataclass(frozen=True)
class _Part:
    """A piece of the template, or a text to be encoded on its own."""

    text: str
    is_piece: bool
    supervised: bool


def render(record: Record, tokenizer: Tokenizer) -> Sample:
    """Ids and supervised mask of a training record, made in one pass.

    Raises UserError naming the record: the last turn is not the assistant's, a reasoning text is missing in reasoning
    mode, or the mask came out all False or all True.
    """
    where = f"record {record.id!r}"
    if record.messages[-1].role != "assistant":
        raise UserError(
            f"{where}: the last message is the {record.messages[-1].role}'s; a training record must end "
            "with an assistant message"
        )
    for index, message in enumerate(record.messages):
        if record.thinking == "reasoning" and message.role == "assistant" and not (message.reasoning or "").strip():
            raise UserError(
                f"{where}: messages[{index}] has no 'reasoning', which thinking: reasoning needs; add it, "
                "or use thinking: fast"
            )
    ids, supervised = [tokenizer.bos_id], [False]
    for part in _conversation(record.messages, record.thinking, where):
        part_ids = _encode(part, tokenizer)
        ids += part_ids
        supervised += [part.supervised] * len(part_ids)
    return _checked(ids, supervised, record.id, record.thinking)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer, thinking: str) -> list[int]:
    """Ids that a model continues: BOS, the turns, then "[unused9]助手：".

    Raises UserError when the last message is an assistant's, or there is no user message.
    """
    if not messages or messages[-1].role == "assistant":
        raise UserError("prompt: the last message must be the user's or a tool's, since the assistant is to speak next")
    ids = [tokenizer.bos_id]
    for part in (*_conversation(messages, thinking, "prompt"), *_header("assistant")):
        ids += _encode(part, tokenizer)
    return ids


def sample_from_completion(
    prompt_ids: Sequence[int], completion_ids: Sequence[int], record_id: str, thinking: str, tokenizer: Tokenizer
) -> Sample:
    """A generated answer as a sample that supervises exactly `completion_ids`.

    An answer that was cut has no [unused10], and none is added. Raises UserError naming the record: either part is
    empty, an id is outside the vocabulary, BOS is not exactly the first id of the prompt, or [unused10] comes early.
    """
    where = f"rollout {record_id!r}"
    prompt_ids, completion_ids = list(prompt_ids), list(completion_ids)
    for token_id in (*prompt_ids, *completion_ids):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise UserError(
                f"{where}: the id {token_id} is outside the vocabulary of {tokenizer.vocab_size}; the file "
                "was written with another tokenizer"
            )
    if not prompt_ids or prompt_ids[0] != tokenizer.bos_id or prompt_ids.count(tokenizer.bos_id) != 1:
        raise UserError(f"{where}: prompt_ids must begin with exactly one BOS (id {tokenizer.bos_id})")
    if tokenizer.bos_id in completion_ids:
        raise UserError(
            f"{where}: completion_ids hold the BOS (id {tokenizer.bos_id}), which stands in front of the prompt only; "
            "remove the record, or keep the engine from drawing it"
        )
    if tokenizer.eos_id in completion_ids[:-1]:
        raise UserError(f"{where}: completion_ids go on after {TURN_END}; cut them behind it")
    supervised = [False] * len(prompt_ids) + [True] * len(completion_ids)
    return _checked(prompt_ids + completion_ids, supervised, record_id, thinking)


def parse_completion(ids: Sequence[int], tokenizer: Tokenizer) -> Completion:
    """Take generated ids (from behind "助手：") apart.

    An answer cut inside its thinking span has reasoning only; text without a span is an answer that is not well formed.
    """
    ids = [int(token_id) for token_id in ids]
    think_start, think_end = tokenizer.special[THINK_START], tokenizer.special[THINK_END]
    finished = bool(ids) and ids[-1] == tokenizer.eos_id
    body = ids[:-1] if finished else ids
    structural = [token_id for token_id in body if token_id in (*tokenizer.special.values(), tokenizer.bos_id)]
    well_formed = bool(body) and body[0] == think_start and structural == [think_start, think_end]
    if think_end in body:
        split = body.index(think_end)
        reasoning, answer = body[:split], body[split + 1 :]
    elif think_start in body:
        reasoning, answer = body, []
    else:
        reasoning, answer = [], body
    return Completion(tokenizer.decode(reasoning), tokenizer.decode(answer), finished, well_formed)


def encode_completion(text: str, finished: bool, thinking: str, tokenizer: Tokenizer, where: str) -> list[int]:
    """Ids of an answer that an outside engine gives as text.

    The text may hold the span written out, "[unused16] ... [unused17] ...", with spaces around the markers; only the
    leading start, the first end and a closing [unused10] are taken as pieces. A fast answer may come bare. Raises
    UserError naming `where` for a reasoning answer without a span.
    """
    piece = tokenizer.special
    closing = [piece[TURN_END]] if finished else []
    body = text.strip()
    if finished:
        body = body.removesuffix(TURN_END).rstrip()
    if not body.startswith(THINK_START):
        if thinking == "reasoning":
            raise UserError(
                f"{where}: a reasoning answer must begin with {THINK_START}; let the engine keep special "
                "pieces in its text, or give completion_ids"
            )
        return [piece[THINK_START], piece[THINK_END], *tokenizer.encode(body), *closing]
    reasoning, separator, answer = body.removeprefix(THINK_START).partition(THINK_END)
    ids = [piece[THINK_START], *tokenizer.encode(reasoning.strip())]
    return ids + ([piece[THINK_END], *tokenizer.encode(answer.strip())] if separator else []) + closing


def segments(record: Record) -> list[str]:
    """The texts of `record` just as they are encoded (headers and switch included): what a tokenizer is trained on."""
    parts = _conversation(record.messages, record.thinking, f"record {record.id!r}")
    return [part.text for part in parts if not part.is_piece]


def _conversation(messages: Sequence[Message], thinking: str, where: str) -> Iterator[_Part]:
    if thinking not in SWITCHES:
        raise UserError(f"{where}: unknown thinking {thinking!r}; use one of {', '.join(SWITCHES)}")
    user_turns = [index for index, message in enumerate(messages) if message.role == "user"]
    if not user_turns:
        raise UserError(f"{where}: there is no user message")
    if messages[0].role != "system":
        yield from _turn("system", "")
    for index, message in enumerate(messages):
        if message.role == "assistant":
            yield from _assistant_turn(message, thinking)
        else:
            switch = SWITCHES[thinking] if index == user_turns[-1] else ""
            yield from _turn(message.role, message.content.removesuffix(switch) + switch)


def _turn(role: str, content: str) -> Iterator[_Part]:
    yield from _header(role, content)
    yield _Part(TURN_END, True, False)


def _header(role: str, content: str = "") -> Iterator[_Part]:
    yield _Part(TURN_START, True, False)
    yield _Part(ROLE_HEADERS[role] + content, False, False)


def _assistant_turn(message: Message, thinking: str) -> Iterator[_Part]:
    yield from _header("assistant")
    yield _Part(THINK_START, True, True)
    if thinking == "reasoning" and message.reasoning:
        yield _Part(message.reasoning, False, True)
    yield _Part(THINK_END, True, True)
    yield _Part(message.content, False, True)
    yield _Part(TURN_END, True, True)


def _encode(part: _Part, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.special[part.text]] if part.is_piece else tokenizer.encode(part.text)


def _checked(ids: list[int], supervised: list[bool], record_id: str, thinking: str) -> Sample:
    if not any(supervised) or all(supervised):
        what = "every token" if supervised and all(supervised) else "no token"
        raise UserError(f"record {record_id!r}: {what} would be supervised; it needs a prompt and an answer")
    return Sample(np.array(ids, np.int32), np.array(supervised, bool), record_id, thinking)

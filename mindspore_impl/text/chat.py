"""Render conversations with a chat template, with the mask of supervised tokens. Only this module makes Samples.

The tokenizer brings its template (`template.py`). openPangu's, for example:

    <s>[unused9]系统：...[unused10]
    [unused9]用户：... /no_think[unused10]
    [unused9]助手：[unused16]...[unused17]...[unused10]          (no line breaks between the turns)

- Without a system message the template's default system turn is inserted, if it has one (Pangu's is empty).
- Fast mode ends every user turn with the template's switch and leaves the thinking span empty. Reasoning mode adds
  nothing. Where a template has no span, reasoning is plain text before the answer, and fast mode leaves it out.
- Every assistant turn of a training record is supervised, unless its weight is 0: its thinking span, its answer and its
  closing piece.
- Earlier assistant turns are rendered like the last one, with their reasoning in reasoning mode and an empty span in
  fast mode, in training and in prompts alike. A template may forget the reasoning (and span) of turns before the last
  user turn; each supervised turn of a record is then a sample of its own, cut behind it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Message, Record, split_reasoning
from mindspore_impl.text.template import PANGU, REASONING_END, Template
from mindspore_impl.text.tokenizer import Tokenizer


@dataclass
class Sample:
    """One rendered sequence: ids int32 [L]; supervised bool [L], True where the id is learned; meta of the record."""

    ids: np.ndarray
    supervised: np.ndarray
    record_id: str
    thinking: str
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A generated answer taken apart. finished: it ends with the template's closing piece.

    well_formed: exactly one thinking span and an answer behind it (without spans: an answer without any piece).
    """

    reasoning: str
    answer: str
    finished: bool
    well_formed: bool


@dataclass(frozen=True)
class _Part:
    """A piece of the template, or a text (it may be empty) to be encoded on its own."""

    text: str
    is_piece: bool
    supervised: bool


def samples_of(records: Iterable[Record], tokenizer: Tokenizer) -> list[Sample]:
    """The samples of training records: one each, or one for each supervised turn where the template forgets reasoning.

    Raises UserError like `render`.
    """
    return [render(part, tokenizer) for record in records for part in _turns_apart(record, tokenizer.template)]


def _turns_apart(record: Record, template: Template) -> list[Record]:
    """`record`, or for each turn that it supervises the record up to there, with nothing else supervised."""
    messages = record.messages
    turns = [index for index, message in enumerate(messages) if message.role == "assistant" and message.supervised]
    if not template.forgets_reasoning or not turns or messages[-1].role != "assistant":
        return [record]
    earlier = tuple(replace(message, supervised=message.role != "assistant") for message in messages)
    return [replace(record, messages=(*earlier[:index], messages[index])) for index in turns]


def render(record: Record, tokenizer: Tokenizer) -> Sample:
    """Ids and supervised mask of one training record, made in one pass; `samples_of` renders a data set.

    Raises UserError naming the record: the last turn is not the assistant's, a reasoning text is missing in reasoning
    mode, or the mask came out all False or all True.
    """
    where = f"record {record.id!r}"
    if record.messages[-1].role != "assistant":
        raise UserError(f"{where}: the last message of a training record must be the assistant's")
    for index, message in enumerate(record.messages):
        learned = message.role == "assistant" and message.supervised
        if record.thinking == "reasoning" and learned and not (message.reasoning or "").strip():
            raise UserError(f"{where}: messages[{index}] has no 'reasoning'; add it, or use thinking: fast")
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    supervised = [False] * len(ids)
    for part in _conversation(record.messages, record.thinking, tokenizer.template, where):
        part_ids = _encode(part, tokenizer)
        ids += part_ids
        supervised += [part.supervised] * len(part_ids)
    return _checked(ids, supervised, record)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer, thinking: str) -> list[int]:
    """Ids that a model continues: BOS if there is one, the turns, then the assistant's header.

    Raises UserError when the last message is an assistant's, or there is no user message.
    """
    if not messages or messages[-1].role == "assistant":
        raise UserError("prompt: the last message must be the user's or a tool's, since the assistant is to speak next")
    template, ids = tokenizer.template, [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    turns = _conversation(messages, thinking, template, "prompt")
    for part in (*turns, _Part(template.separator, False, False), *_header(template, "assistant")):
        ids += _encode(part, tokenizer)
    return ids


def sample_from_completion(
    prompt_ids: Sequence[int], completion_ids: Sequence[int], record: Record, tokenizer: Tokenizer
) -> Sample:
    """An answer to `record` as a sample that supervises exactly `completion_ids`; a cut one gets no closing piece.

    Raises UserError naming the record: a part is empty, an id is outside the vocabulary, BOS is not exactly the first
    id of the prompt (if the template has one), or the answer continues after its closing piece.
    """
    where = f"rollout {record.id!r}"
    prompt_ids, completion_ids = list(prompt_ids), list(completion_ids)
    for token_id in (*prompt_ids, *completion_ids):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise UserError(f"{where}: the id {token_id} is outside the vocabulary of {tokenizer.vocab_size}")
    bos_id = tokenizer.bos_id
    if bos_id is not None and (prompt_ids[:1] != [bos_id] or prompt_ids.count(bos_id) != 1):
        raise UserError(f"{where}: prompt_ids must begin with exactly one BOS (id {bos_id})")
    if bos_id in completion_ids:
        raise UserError(f"{where}: completion_ids hold the BOS (id {bos_id}); remove the record, or forbid the id")
    if tokenizer.eos_id in completion_ids[:-1]:
        raise UserError(f"{where}: completion_ids go on after {tokenizer.template.turn_end}; cut them behind it")
    supervised = [False] * len(prompt_ids) + [True] * len(completion_ids)
    return _checked(prompt_ids + completion_ids, supervised, record)


def parse_completion(ids: Sequence[int], tokenizer: Tokenizer) -> Completion:
    """Take generated ids (from behind the assistant's header) apart.

    One cut inside its thinking span has reasoning only; one without is not well formed, if the template has a span.
    """
    ids = [int(token_id) for token_id in ids]
    finished = bool(ids) and ids[-1] == tokenizer.eos_id
    body = ids[:-1] if finished else ids
    structural = [token_id for token_id in body if token_id in (*tokenizer.special.values(), tokenizer.bos_id)]
    if not tokenizer.template.thinks:
        return Completion("", tokenizer.decode(body), finished, bool(body) and not structural)
    think_start, think_end = thinking_ids(tokenizer)
    well_formed = bool(body) and body[0] == think_start and structural == [think_start, think_end]
    split = body.index(think_end) if think_end in body else len(body) if think_start in body else 0
    return Completion(tokenizer.decode(body[:split]), tokenizer.decode(body[split:]), finished, well_formed)


def thinking_ids(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The ids that open and close a thinking span, None where the template has none."""
    template = tokenizer.template
    return tokenizer.special.get(template.think_start), tokenizer.special.get(template.think_end)


def encode_completion(text: str, finished: bool, thinking: str, tokenizer: Tokenizer, where: str) -> list[int]:
    """Ids of an answer that an external engine returns as text.

    Args:
        text: may hold the thinking span, "[unused16] ... [unused17] ...", with spaces around the markers; only the
            leading start, the first end and a closing piece are taken as pieces. <think> tags are read as in records.
            A fast answer may have no span.
        finished: the answer ended with the closing piece.
        thinking: reasoning or fast.
        tokenizer: encodes the text.
        where: file and line, for messages.

    Raises UserError for a reasoning answer without a span (if the template has spans).
    """
    piece, template = tokenizer.special, tokenizer.template
    closing = [piece[template.turn_end]] if finished else []
    body = text.strip()
    if finished:
        body = body.removesuffix(template.turn_end).rstrip()
    if not template.thinks:
        return [*tokenizer.encode(body), *closing]
    think_start, think_end = thinking_ids(tokenizer)
    if body.startswith(template.think_start):
        thought, ended, answer = body.removeprefix(template.think_start).partition(template.think_end)
    else:
        thought, answer = split_reasoning(body, where, cut=not finished)
        ended = thought is None or answer or finished
        if thought is None and thinking == "reasoning":
            hint = "let the engine keep special pieces, or give completion_ids"
            raise UserError(f"{where}: a reasoning answer must begin with {template.think_start}; {hint}")
    behind = [think_end, *tokenizer.encode(answer.strip())] if ended else []
    return [think_start, *tokenizer.encode((thought or "").strip()), *behind, *closing]


def segments(record: Record, template: Template = PANGU) -> list[str]:
    """The texts of `record` exactly as they are encoded, headers and switch included: the corpus of a tokenizer."""
    parts = _conversation(record.messages, record.thinking, template, f"record {record.id!r}")
    return [part.text for part in parts if part.text and not part.is_piece]


def _conversation(messages: Sequence[Message], thinking: str, template: Template, where: str) -> Iterator[_Part]:
    if thinking not in template.switches:
        raise UserError(f"{where}: unknown thinking {thinking!r}; use one of {', '.join(template.switches)}")
    user_turns = [index for index, message in enumerate(messages) if message.role == "user"]
    if not user_turns:
        raise UserError(f"{where}: there is no user message")
    turns = list(messages)
    if turns[0].role != "system" and template.default_system is not None:
        turns.insert(0, Message("system", template.default_system))
    last_user = len(turns) - len(messages) + user_turns[-1]
    for index, message in enumerate(turns):
        if index:
            yield _Part(template.separator, False, False)
        if message.role == "assistant" and not (template.forgets_reasoning and index < last_user):
            yield from _assistant_turn(message, thinking, template)
        else:
            switch = template.switches[thinking] if message.role == "user" else ""
            yield from _header(template, message.role, _switched(message.content, switch))
            yield _Part(template.turn_end, True, False)


def _header(template: Template, role: str, content: str = "") -> Iterator[_Part]:
    yield _Part(template.turn_start, True, False)
    yield _Part(template.headers[role] + content, False, False)


def _switched(content: str, switch: str) -> str:
    """`content` with the switch at its end, once, however the user wrote it."""
    mark, bare = switch.strip(), content.rstrip()
    return (bare.removesuffix(mark).rstrip() if mark and bare.endswith(mark) else content) + switch


def _assistant_turn(message: Message, thinking: str, template: Template) -> Iterator[_Part]:
    yield from _header(template, "assistant")
    reasoning, learned = (message.reasoning or "") if thinking == "reasoning" else "", message.supervised
    if template.thinks:
        yield _Part(template.think_start, True, learned)
        yield _Part(reasoning, False, learned)
        yield _Part(template.think_end, True, learned)
        yield _Part(message.content, False, learned)
    else:
        yield _Part(reasoning + REASONING_END + message.content if reasoning else message.content, False, learned)
    yield _Part(template.turn_end, True, learned)


def _encode(part: _Part, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.special[part.text]] if part.is_piece else tokenizer.encode(part.text)


def _checked(ids: list[int], supervised: list[bool], record: Record) -> Sample:
    if not any(supervised) or all(supervised):
        what = "every token" if supervised and all(supervised) else "no token"
        raise UserError(f"record {record.id!r}: {what} would be supervised; it needs a prompt and an answer")
    return Sample(np.array(ids, np.int32), np.array(supervised, bool), record.id, record.thinking, record.meta)

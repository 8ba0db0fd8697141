"""The rollout file (JSONL): one generated answer per line, written by our engine or an external one.

An answer that reached the token limit (`finish: length`) has no end-of-turn token, and its sample does not learn to
stop there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.text import chat
from mindspore_impl.text.chat import Sample
from mindspore_impl.text.records import (
    THINKING,
    Message,
    Record,
    check_keys,
    choice_field,
    messages_to_json,
    new_id,
    object_field,
    parse_messages,
    refuse,
    text_field,
)
from mindspore_impl.text.tokenizer import Tokenizer, check_tokenizer

FINISHES = ("stop", "length")
REQUIRED = ("id", "messages", "thinking", "text", "finish")


@dataclass(frozen=True)
class Rollout:
    """One answer to one prompt. The ids are None when an external engine returned text only."""

    id: str
    messages: tuple[Message, ...]  # the prompt's turns
    thinking: Literal["reasoning", "fast"]
    prompt_ids: list[int] | None
    completion_ids: list[int] | None  # of the answer, with the end of turn when finish is "stop"
    text: str  # the answer
    finish: Literal["stop", "length"]
    weights_sha256: str | None = None
    tokenizer_sha256: str | None = None
    sampling: dict = field(default_factory=dict)  # the decoding settings
    meta: dict = field(default_factory=dict)  # of the record, for verification


LOOP_REPEATS, LOOP_TOKENS = 3, 8  # a loop repeats its n-gram so often, and has so many tokens, or more
KEYS = tuple(item.name for item in fields(Rollout))


def write_rollouts(path: str | Path, items: Iterable[Rollout]) -> int:
    """Write rollouts as JSON lines, atomically; return how many."""
    return files.write_jsonl(path, map(rollout_to_json, items))


def rollout_to_json(rollout: Rollout) -> dict:
    """The JSON object of `rollout`; absent ids and hashes are left out."""
    value = {key: getattr(rollout, key) for key in KEYS if getattr(rollout, key) is not None}
    for key in ("prompt_ids", "completion_ids"):
        if key in value:
            value[key] = [int(token_id) for token_id in value[key]]  # NumPy integers are not JSON
    return value | {"messages": messages_to_json(rollout.messages)}


def read_rollouts(path: str | Path, tokenizer: Tokenizer, keep_truncated: bool) -> list[Rollout]:
    """Read and check a rollout file; absent ids are rendered from the messages and the text.

    keep_truncated: keep answers whose finish is "length". Raises UserError naming file:line and the record: a malformed
    field, an id outside the vocabulary, another tokenizer's hash, a finish that its ids contradict, a repeated id, or
    no rollout left.
    """
    rollouts, places = [], {}
    for number, value in files.read_jsonl(path):
        rollout = parse_rollout(value, f"{path}:{number}", tokenizer)
        new_id(rollout.id, f"{path}:{number}", places)
        if keep_truncated or rollout.finish == "stop":
            rollouts.append(rollout)
    if not rollouts:
        fault = f"each of the {len(places)} rollouts was cut by the token limit"
        raise UserError(f"{path}: {fault}; raise max_new_tokens, or set keep_truncated: true")
    return rollouts


def refuse_copies(samples: int, temperature: float, top_k: int, *keys: str) -> None:
    """Raise UserError when several answers to one prompt would be greedy, so all the same; keys: of the first two."""
    if samples > 1 and (temperature == 0 or top_k == 1):
        how = "temperature 0" if temperature == 0 else "top_k 1"
        advice = f"set {keys[1]} above 0 (0.2 and 0.8 are usual) without top_k 1, or {keys[0]} to 1"
        raise UserError(f"{keys[0]}: {samples} answers at {how} are all the same; {advice}")


def loops(ids: Sequence[int]) -> bool:
    """Whether one token or n-gram is repeated to the end of these ids."""
    for size in range(1, len(ids) // LOOP_REPEATS + 1):
        tail = ids[-max(LOOP_REPEATS * size, LOOP_TOKENS) :]
        if len(tail) >= LOOP_TOKENS and tail[size:] == tail[:-size]:
            return True
    return False


def flaws_of(rollout: Rollout, tokenizer: Tokenizer, seen: set[int]) -> set[str]:
    """What is wrong with an answer, whatever it says: "truncated", "empty" (no text), "looping" and "copies".

    seen: of the answers before it, to which it is added: a copy is of one to the same prompt.
    """
    ids = list(_with_ids(rollout, tokenizer, f"rollout {rollout.id!r}").completion_ids)
    said = chat.parse_completion(ids, tokenizer)
    text, body = (said.answer, ids[:-1]) if said.finished else (said.reasoning + said.answer, ids)
    found = {"truncated": not said.finished, "empty": not text.strip(), "looping": loops(body)}
    found["copies"] = (answer := hash((rollout.id.rpartition("#")[0], *ids))) in seen
    seen.add(answer)
    return {name for name, there in found.items() if there}


def to_sample(rollout: Rollout, tokenizer: Tokenizer) -> Sample:
    """The rollout as a training sample that supervises the completion, without an end that was not generated."""
    completed = _with_ids(rollout, tokenizer, f"rollout {rollout.id!r}")
    _check_finish(completed, tokenizer, f"rollout {rollout.id!r}")
    record = Record(rollout.id, rollout.messages, rollout.thinking, rollout.meta)
    return chat.sample_from_completion(completed.prompt_ids, completed.completion_ids, record, tokenizer)


def parse_rollout(value: Any, where: str, tokenizer: Tokenizer | None) -> Rollout:
    """Check one JSON object of a rollout file; absent ids are rendered. Raises UserError naming `where`.

    Without a tokenizer only the fields are checked, and absent ids stay None.
    """
    check_keys(value, KEYS, REQUIRED, where)
    identity = text_field(value, "id", where)
    where = f"{where}: rollout {identity!r}"
    messages = parse_messages(value["messages"], where, value["thinking"])
    if messages[-1].role == "assistant":
        refuse(where, "messages must hold the prompt only, but the last message is an assistant's")
    found = {"id": identity, "messages": messages, "text": text_field(value, "text", where)}
    for key, choices in (("thinking", THINKING), ("finish", FINISHES)):
        found[key] = choice_field(value, key, choices, where)
    found |= {key: _ids(value, key, where, tokenizer) for key in ("prompt_ids", "completion_ids")}
    hashes = [key for key in ("weights_sha256", "tokenizer_sha256") if value.get(key) is not None]
    found |= {key: text_field(value, key, where) for key in hashes}
    rollout = Rollout(**found, **{key: object_field(value, key, where) for key in ("sampling", "meta")})
    if tokenizer is None:
        return rollout
    if rollout.prompt_ids is not None or rollout.completion_ids is not None:
        if rollout.tokenizer_sha256 is None:
            refuse(where, "ids are given without tokenizer_sha256; add the sha256 of their tokenizer.model")
        check_tokenizer(
            rollout.tokenizer_sha256, tokenizer.sha256, where, "name its own in tokenizer.path, or leave the ids out"
        )
    rollout = _with_ids(rollout, tokenizer, where)
    _check_finish(rollout, tokenizer, where)
    return rollout


def _ids(value: dict, key: str, where: str, tokenizer: Tokenizer | None) -> list[int] | None:
    ids = value.get(key)
    if ids is None:
        return None
    if not isinstance(ids, list) or not ids or any(type(token_id) is not int for token_id in ids):
        refuse(where, f"{key} must be a non-empty array of integers, or be left out")
    if tokenizer is not None and (min(ids) < 0 or max(ids) >= tokenizer.vocab_size):
        worst = min(ids) if min(ids) < 0 else max(ids)
        fault = f"{key} holds the id {worst}, outside the vocabulary of {tokenizer.vocab_size}"
        refuse(where, f"{fault}; it was written with another tokenizer or a padded vocabulary")
    return ids


def _with_ids(rollout: Rollout, tokenizer: Tokenizer, where: str) -> Rollout:
    """The same rollout with both id lists, rendered where they are absent."""
    prompt_ids, ids, finished = rollout.prompt_ids, rollout.completion_ids, rollout.finish == "stop"
    if prompt_ids is None:
        prompt_ids = chat.render_prompt(rollout.messages, tokenizer, rollout.thinking)
    if ids is None:
        ids = chat.encode_completion(rollout.text, finished, rollout.thinking, tokenizer, where)
    return replace(rollout, prompt_ids=prompt_ids, completion_ids=ids, tokenizer_sha256=tokenizer.sha256)


def _check_finish(rollout: Rollout, tokenizer: Tokenizer, where: str) -> None:
    ended = bool(rollout.completion_ids) and rollout.completion_ids[-1] == tokenizer.eos_id
    if ended != (rollout.finish == "stop"):
        found = f"finish is {rollout.finish!r}, but completion_ids {'end' if ended else 'do not end'}"
        refuse(where, f"{found} with {tokenizer.template.turn_end}; they must, exactly when finish is 'stop'")

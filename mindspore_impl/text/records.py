"""Conversation records: the common form of all data sources, which is all that later rooms know."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest

ROLES = ("system", "user", "assistant", "tool")
THINKING = ("reasoning", "fast")
FLAGS = ("weight", "loss", "train")  # of a message, 0 or false: the turn is read, and not learned
# Marks around the reasoning in answers of other models; those of a template are pieces, never text.
THINK_TAG = re.compile(
    r"[<＜◁]\s*(?P<end>/?)\s*(?:seed:)?(?:think(?:ing)?|thought|reasoning)(?:\s[^<>]*|\s*/)?[>＞▷]"
    r"|(?P<stop>\[/think\]|<\|end_of_thought\|>|\[unused17\])|\[think\]|<\|begin_of_thought\|>|\[unused16\]",
    re.IGNORECASE,
)
_SWITCH = re.compile(r"/(?P<off>no[_-]?think)\Z|/auto_?think\Z|(?<![\w./-])/(?P<on>think)\Z", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Message:
    """One turn. `reasoning` is the text inside the thinking span of an assistant turn.

    supervised: whether an assistant turn is learned; the others never are.
    """

    role: str
    content: str
    reasoning: str | None = None
    supervised: bool = True


@dataclass(frozen=True)
class Record:
    """One conversation. A prompt ends with a user or tool turn, a training record with an assistant turn."""

    id: str
    messages: tuple[Message, ...]
    thinking: Literal["reasoning", "fast"]
    meta: dict = field(default_factory=dict)


def parse_record(obj: Any, where: str) -> Record:
    """Check one JSON object of the record form and return it as a Record; the last turn may be of any role.

    `where` names its place (file:line). Raises UserError that names the place, the field and the fix.
    """
    check_keys(obj, ("id", "messages", "thinking", "meta"), ("id", "messages", "thinking"), where)
    identity = text_field(obj, "id", where)
    if not identity:
        refuse(where, "id is empty; give each record a name of its own")
    choice_field(obj, "thinking", THINKING, where)
    meta = object_field(obj, "meta", where)
    messages = parse_messages(obj["messages"], f"{where}: record {identity!r}", obj["thinking"])
    return Record(identity, messages, obj["thinking"], meta)


def parse_messages(value: Any, where: str, thinking: str | None = None) -> tuple[Message, ...]:
    """Check the `messages` array of a record. Raises UserError naming `where`, the index and the field.

    thinking: the record's mode, which no switch in a text may contradict; None: not known.
    """
    if not isinstance(value, list):
        refuse(where, f"messages must be an array, found {json_type(value)}")
    if not value:
        refuse(where, "messages is empty; a record needs at least one user message")
    messages = tuple(parse_message(item, f"{where}: messages[{index}]") for index, item in enumerate(value))
    check_turns(messages, where, thinking)
    return messages


def check_turns(messages: Sequence[Message], where: str, thinking: str | None, turns: str = "messages") -> None:
    """What holds between the turns of a conversation. Raises UserError naming `where` and the index in `turns`."""
    for index, message in enumerate(messages[1:], start=1):
        if message.role == "system":
            refuse(where, f"{turns}[{index}] is a system message; only the first message may be one")
    if all(message.role == "system" for message in messages):
        refuse(where, f"{turns} holds a system message only; add a user message")
    answers = [message for message in messages if message.role == "assistant"]
    if messages[-1].role == "assistant" and not any(message.supervised for message in answers):
        refuse(where, "no turn of the assistant is learned, as all have weight 0; remove the record")
    for index, message in enumerate(messages):
        switch = _SWITCH.search(message.content.rstrip()[-20:]) if message.role in ("system", "user") else None
        if thinking and switch and not switch["off" if thinking == "fast" else "on"]:
            fault = f"{turns}[{index}] ends in {switch[0]}, and the record's thinking is {thinking!r}"
            refuse(where, f"{fault}; remove the switch, or change thinking")


def parse_message(obj: Any, where: str) -> Message:
    """Check one turn, and split the reasoning off an answer that holds both. Raises UserError naming `where`."""
    check_keys(obj, ("role", "content", "reasoning", *FLAGS), ("role", "content"), where)
    role = choice_field(obj, "role", ROLES, where)
    if isinstance(obj["content"], list):
        refuse(where, "content is an array of parts, which is not read; join their texts into one string")
    content = text_field(obj, "content", where)
    reasoning = None if obj.get("reasoning") is None else text_field(obj, "reasoning", where)
    if reasoning is not None and role != "assistant":
        refuse(where, f"a {role} message has 'reasoning'; only an assistant message may")
    if role == "assistant":
        thought, content = split_reasoning(content, where)
        if reasoning is not None and (thought is not None or THINK_TAG.search(reasoning)):
            refuse(where, "there is a reasoning, and a <think> tag beside or in it; give the reasoning once, as text")
        reasoning = reasoning if thought is None else thought or None
    if role in ("user", "assistant") and not any(char.isprintable() and not char.isspace() for char in content):
        refuse(where, f"the content of this {role} message is blank; fill it or remove the record")
    return Message(role, content, reasoning, _learned(obj, role, where))


def split_reasoning(text: str, where: str, cut: bool = False) -> tuple[str | None, str]:
    """(reasoning, answer) of an answer that opens with <think>reasoning</think>, or that only closes it.

    cut: the answer ended early, so that its block may lack an end. The reasoning is None where there is no tag.
    Raises UserError naming `where` for tags in any other place.
    """
    tags = list(THINK_TAG.finditer(text)) if any(mark in text for mark in "<[＜◁") else []  # faster for most answers
    if not tags:
        return None, text
    ends = [bool(tag["end"] or tag["stop"]) for tag in tags]
    if ends == [True]:  # a template that opens the span in the prompt leaves the end alone to the model
        return text[: tags[0].start()].strip(), text[tags[0].end() :].strip()
    if (ends == [False, True] or cut and ends == [False]) and not text[: tags[0].start()].strip():
        reasoning, _, answer = text[tags[0].end() :].partition(tags[-1][0])
        return reasoning.strip(), answer.strip()
    fault = f"the {tags[0][0]!r} in this answer is not of one block at its start, <think>reasoning</think>answer"
    refuse(where, f"{fault}; mend the answer or remove the record")


def _learned(obj: dict, role: str, where: str) -> bool:
    """Whether a turn is to be learned by its `weight`, `loss` or `train`."""
    flags = {key: obj[key] for key in FLAGS if obj.get(key) is not None}
    for key, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            refuse(where, f"{key} is {value!r}; a turn is learned (1, true) or not (0, false)")
        if value != next(iter(flags.values())):
            refuse(where, f"{' and '.join(flags)} contradict each other; keep one")
        if value and role != "assistant":
            refuse(where, f"{key} is {value!r}, but only turns of the assistant are learned; set it to 0 or remove it")
    return role != "assistant" or all(flags.values())


def record_to_json(record: Record) -> dict:
    """The JSON object of `record`; `parse_record` gives an equal record back."""
    messages = messages_to_json(record.messages)
    return {"id": record.id, "messages": messages, "thinking": record.thinking, "meta": record.meta}


def messages_to_json(messages: tuple[Message, ...]) -> list[dict]:
    """The JSON array of `messages`; a missing reasoning is left out."""
    return [
        {"role": message.role, "content": message.content}
        | ({} if message.reasoning is None else {"reasoning": message.reasoning})
        | ({} if message.supervised else {"weight": 0})
        for message in messages
    ]


def prompt_messages(record: Record) -> tuple[Message, ...]:
    """The turns a model is shown when it has to answer `record`: all of them, without a closing assistant turn."""
    return record.messages[:-1] if record.messages[-1].role == "assistant" else record.messages


def refuse(where: str, text: str) -> NoReturn:
    """Raise the UserError of this place."""
    raise UserError(f"{where}: {text}")


def new_id(identity: str, where: str, places: dict[str, str]) -> None:
    """Note in `places` that this id stands at `where`. Raises UserError when it stands elsewhere already."""
    if (first := places.setdefault(identity, where)) != where:
        refuse(where, f"the id {identity!r} was already used at {first}; ids must differ")


def json_type(value: Any) -> str:
    """What JSON calls the type of `value`."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def as_object(value: Any, where: str) -> dict:
    """Return `value`, checked to be a JSON object. Raises UserError that names the place."""
    return value if isinstance(value, dict) else refuse(where, f"expected an object, found {json_type(value)}")


def check_keys(obj: Any, known: tuple[str, ...], required: tuple[str, ...], where: str) -> None:
    """Refuse anything but an object that has every required key and no unknown one (the nearest name is offered).

    An unknown key whose value is null is as good as absent.
    """
    for key in as_object(obj, where):
        if key not in known and obj[key] is not None:
            refuse(where, f"unknown field {key!r}{nearest(key, known)}")
    require_keys(obj, required, where)


def require_keys(obj: dict, required: tuple[str, ...], where: str) -> None:
    """Refuse an object that lacks one of the required keys; a near miss among its keys is offered."""
    for key in required:
        if key not in obj:
            close = difflib.get_close_matches(key, [str(name) for name in obj], n=1)
            hint = f" (is {close[0]!r} a typo of it?)" if close else f"; it has {', '.join(sorted(obj)) or 'no field'}"
            refuse(where, f"the field {key!r} is missing{hint}")


def text_field(obj: dict, key: str, where: str) -> str:
    """The string at `key`. Refuses another type, and what `check_text` refuses."""
    value = obj[key]
    if not isinstance(value, str):
        refuse(where, f"{key} must be a string, found {json_type(value)}")
    return check_text(value, f"{where}: {key}")


def check_text(text: str, where: str) -> str:
    """Return `text`, which came from `where`: a field, an option, a terminal.

    Raises UserError, with the place in it, when it is not valid Unicode (half of a surrogate pair, which Python also
    makes of bytes that are not UTF-8) or holds NUL.
    """
    bad, fault = text.find("\0"), "NUL"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad, fault = error.start, "a lone surrogate"
        if 0xDC80 <= (code := ord(text[bad])) < 0xDD00:
            fault = f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8, or a lone surrogate"
    if bad >= 0:
        refuse(where, f"not valid Unicode text ({fault} at character {bad}); correct it at its source")
    return text


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its end) of a UTF-8 text file. Raises UserError that names file and line."""
    with files.reading(path), open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            yield number, check_text(line, f"{path}:{number}")


def object_field(obj: dict, key: str, where: str) -> dict:
    """The object at `key`, {} when absent. Refuses another type, and what could be read but never written again."""
    value = obj.get(key, {})
    if not isinstance(value, dict):
        refuse(where, f"{key} must be an object, found {json_type(value)}")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # UnicodeEncodeError is one
        refuse(where, f"{key} holds NaN, infinity or invalid Unicode; correct the source file")
    except RecursionError:
        refuse(where, f"{key} is nested too deeply; correct the source file")
    return value


def choice_field(obj: dict, key: str, choices: tuple[str, ...], where: str) -> str:
    """The string at `key`, one of `choices`; otherwise the nearest valid one is offered."""
    value = text_field(obj, key, where)
    if value not in choices:
        refuse(where, f"unknown {key} {value!r}{nearest(value, choices)}")
    return value

"""Parse the answer formats of vLLM, one JSON object a line, and index the answers of a set of files.

Three forms are read: an answer of the OpenAI-compatible completions endpoint as it is ({"choices": ...}); the same
inside a line of a batch ({"custom_id", "response": {"status_code", "body"}}, what `vllm run-batch` and our own client
write); and the fields of an offline `RequestOutput` ({"prompt_token_ids", "prompt_logprobs", "outputs"}). Source:
https://docs.vllm.ai (OpenAI-compatible server, batch files, `vllm.outputs`), read in versions 0.6 to 0.12.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import json_type
from mindspore_impl.text.tokenizer import check_tokenizer as compare

SHOWN = 20  # faults told one by one; the rest are counted


class BadAnswer(UserError):
    """An answer that cannot be used; `fault` is its kind, by which such answers are counted."""

    def __init__(self, fault: str, detail: str = ""):
        super().__init__(f"{fault}: {detail}" if detail else fault)
        self.fault = fault


@dataclass(frozen=True)
class Output:
    """One completion. ids are None where the engine gives text only; stop is the id or text that ended it, if any."""

    text: str
    ids: list[int] | None
    finish: str | None
    stop: int | str | None


@dataclass(frozen=True)
class Answer:
    """One answer. prompt_logprobs: an entry a prompt token, still unchecked; None where they were not asked for."""

    custom_id: str | None
    prompt_ids: list[int] | None
    prompt_logprobs: Any
    outputs: tuple[Output, ...]
    tokenizer_sha256: str | None = None


def parse_answer(value: Any) -> Answer:
    """An answer from any of the three forms. Raises BadAnswer for another form, and for an error in place of one."""
    if not isinstance(value, dict):
        raise BadAnswer("another form", f"{json_type(value)} in place of an object")
    body, custom_id = value, value.get("custom_id")
    if "response" in value or "error" in value:
        response = value.get("response")
        if not isinstance(response, dict) or value.get("error"):
            raise BadAnswer("an error instead of an answer", str(value.get("error"))[:200])
        body = response.get("body", response)
        if response.get("status_code", 200) != 200:
            raise BadAnswer("an error instead of an answer", f"{response['status_code']} {str(body)[:200]}")
    if not isinstance(body, dict):
        raise BadAnswer("another form", "the body of the response is not an object")
    online = "choices" in body
    outputs = body.get("choices" if online else "outputs")
    if not isinstance(outputs, list) or not outputs or not all(isinstance(entry, dict) for entry in outputs):
        raise BadAnswer("another form", "it has neither `choices` (of a server) nor `outputs` (of an offline script)")
    outputs = sorted(outputs, key=lambda entry: entry["index"] if type(entry.get("index")) is int else 0)
    holder = outputs[0] if online else body  # of what concerns the prompt
    return Answer(
        custom_id if isinstance(custom_id, str) else None,
        _ids(holder, "prompt_token_ids"),
        holder.get("prompt_logprobs"),
        tuple(_output(entry) for entry in outputs),
        value.get("tokenizer_sha256"),
    )


def _output(entry: dict) -> Output:
    if not isinstance(entry.get("text"), str):
        raise BadAnswer("another form", "the completion has no `text`")
    ids = _ids(entry, "token_ids")
    return Output(entry["text"], ids, entry.get("finish_reason"), entry.get("stop_reason"))


def _ids(holder: dict, key: str) -> list[int] | None:
    ids = holder.get(key)
    if ids is None:
        return None
    if not isinstance(ids, list) or any(type(token_id) is not int or not 0 <= token_id < 2**31 for token_id in ids):
        raise BadAnswer("another form", f"{key} is not an array of token ids")
    return ids


@dataclass(frozen=True)
class Place:
    """Where a usable answer stands: the output `part` of the line of `path` that begins at `offset`."""

    path: Path
    offset: int
    part: int = 0


@dataclass
class Found:
    """What a look through answer files came to: places by question, and kinds of faults with their number."""

    places: dict[str, Place] = field(default_factory=dict)
    faults: Counter = field(default_factory=Counter)


Served = tuple[str, int] | BadAnswer  # (key of the question, number of the output), or why an output serves none


def look_through(
    paths: Sequence[Path], served: Callable[[Answer, Found], Iterable[Served]], wanted: dict[str, str], most: int = 0
) -> Found:
    """Find the first usable answer to each question in JSONL files, holding one line at a time; print the faults.

    `served(answer, found)` says what the outputs of a checked answer serve, and raises BadAnswer when all is wrong; a
    later answer to an answered question counts as repeated. `wanted`: the questions by key, in words. Raises UserError
    when a file cannot be read, or more than `most` questions (or all) have no usable answer.
    """
    found = Found()
    for path in paths:
        for number, offset, value in files.scan_jsonl(path):
            try:
                if isinstance(value, UserError):
                    raise value
                results = list(served(parse_answer(value), found))
            except UserError as error:
                results = [error]
            for result in results:
                if not isinstance(result, UserError) and result[0] in found.places:
                    result = BadAnswer("repeated", f"{result[0][:40]} is answered already")
                if not isinstance(result, UserError):
                    found.places[result[0]] = Place(path, offset, result[1])
                    continue
                where = f"{path}:{number}"
                if found.faults.total() < SHOWN:
                    print(f"  {result}" if str(result).startswith(where) else f"  {where}: {result}")
                found.faults[getattr(result, "fault", "not JSON")] += 1
    if found.faults:
        print(f"  lines without use: {counted(found.faults)}")
    missing = [words for key, words in wanted.items() if key not in found.places]
    if len(missing) > most or len(missing) == len(wanted):
        fault = f"{len(missing)} of {len(wanted)} questions have no usable answer, the first is {missing[0]}"
        remedy = f"ask again (what is answered is kept), or for rollouts --allow-missing {len(missing)}"
        raise UserError(f"{', '.join(map(str, paths))}: {fault}; {remedy}")
    return found


def outcome(found: Found, repairs: Counter) -> dict[str, dict[str, int]]:
    """What was mended and what was refused, by kind, for a summary."""
    return {"repaired": {kind: number for kind, number in repairs.items() if number}, "refused": dict(found.faults)}


def answer_at(place: Place) -> Answer:
    """The answer at a place that `look_through` found."""
    return parse_answer(files.read_line(place.path, place.offset))


def check_tokenizer(answer: Answer, sha256: str) -> None:
    """Refuse an answer that says it was made with another tokenizer."""
    if answer.tokenizer_sha256 is not None:
        try:
            compare(answer.tokenizer_sha256, sha256, "the answer", "ask the server of this tokenizer again")
        except UserError as error:
            raise BadAnswer("another tokenizer", str(error)) from error


def counted(kinds: Counter) -> str:
    """Kinds and numbers in words, the most frequent first."""
    return ", ".join(f"{number:,} x {kind}" for kind, number in kinds.most_common())

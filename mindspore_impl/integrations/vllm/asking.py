"""Ask a server what an answer file still lacks, and append every usable answer to it (`tools/query_teacher.py`).

The file is a batch file of vLLM's form, one line an answer (of a top-k only what is needed), written and flushed to
disk at once. A second run cuts off a half-written line, asks only what has no usable answer there yet, and goes on.
"""

import json
import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindspore_impl import files
from mindspore_impl.data.teacher_store import StoreHeader, sample_key
from mindspore_impl.distill.capture import distinct
from mindspore_impl.distill.rollout import Prompt
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.integrations.vllm.answers import Answer, BadAnswer, counted, parse_answer
from mindspore_impl.integrations.vllm.client import Question, Server, ask_all, resolve_model
from mindspore_impl.integrations.vllm.rollouts import rollout_of, rollout_request
from mindspore_impl.integrations.vllm.topk import slimmed, teacher_rows, topk_request
from mindspore_impl.text.chat import Sample
from mindspore_impl.text.tokenizer import Tokenizer

SHOWN = 10  # given-up questions told one by one


def ask_topk(server: Server, samples: Sequence[Sample], header: StoreHeader, path: Path) -> None:
    """Ask for the top K of every distinct sample and keep the answers in `path`. Raises UserError: some are missing."""
    by_key = {sample_key(sample.ids): sample for sample in distinct(samples)}
    server = resolve_model(server, max(len(sample.ids) for sample in by_key.values()) + 1)

    def question(key: str) -> Question:
        return Question(key, topk_request(by_key[key], header.top_k, server.model))

    def check(question: Question, body: dict) -> None:
        teacher_rows(_one_choice(body), by_key[question.key], header, Counter())

    def kept(question: Question, body: dict) -> dict:
        return slimmed(body, by_key[question.key])

    _ask(server, list(by_key), question, check, kept, path, header.tokenizer_sha256)


def ask_rollouts(
    server: Server, prompts: Sequence[Prompt], sampling: SamplingOptions, tokenizer: Tokenizer, path: Path,
    allow_missing: int = 0,
) -> None:  # fmt: skip
    """Ask for an answer to every prompt and keep them in a file. Raises UserError when too many are missing.

    Args:
        server: where and how to ask.
        prompts: the questions.
        sampling: decoding settings.
        tokenizer: of the server's model.
        path: the file of answers.
        allow_missing: how many prompts may stay without one.
    """
    by_key = {prompt.key: prompt for prompt in prompts}
    server = resolve_model(server, max(len(prompt.ids) for prompt in prompts) + 1)

    def question(key: str) -> Question:
        return Question(key, rollout_request(by_key[key], sampling, tokenizer, server.model))

    def check(question: Question, body: dict) -> None:
        answer, prompt = _one_choice(body), by_key[question.key]
        if answer.prompt_ids is not None and answer.prompt_ids != prompt.ids:
            raise BadAnswer("about another prompt", f"of {len(answer.prompt_ids)} tokens")
        rollout_of(answer.outputs[0], prompt, sampling, tokenizer, None, Counter())

    _ask(server, list(by_key), question, check, lambda _, body: body, path, tokenizer.sha256, allow_missing)


def _one_choice(body: Any) -> Answer:
    """The answer that a server gave, which must have the one choice that was asked for."""
    answer = parse_answer(body)
    if "choices" not in body:
        raise BadAnswer("another form", "a server's answer has `choices`")
    if len(answer.outputs) != 1:
        raise BadAnswer("another form", f"{len(answer.outputs)} choices, and one was asked for")
    return answer


def _ask(
    server: Server,
    keys: Sequence[str],
    question_of: Callable[[str], Question],
    check: Callable[[Question, dict], None],
    kept: Callable[[Question, dict], dict],
    path: Path,
    tokenizer_sha256: str,
    allow_missing: int = 0,
) -> None:
    with _opened(path) as log:
        answered, useless = _answered(path, keys, question_of, check)
        if useless:
            print(f"  {path}: lines without use, asked again: {counted(useless)}")
        missing = [key for key in keys if key not in answered]
        print(f"{len(missing):,} questions to {server.model} at {server.url}, {len(answered):,} answered before")

        def keep(question: Question, body: dict) -> None:
            line = {
                "custom_id": question.key,
                "request_sha256": files.sha256_json(question.body),
                "tokenizer_sha256": tokenizer_sha256,
                "response": {"status_code": 200, "body": kept(question, body)},
            }
            log.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            log.flush()
            os.fsync(log.fileno())
            answered.add(question.key)

        faults, given_up = ask_all(server, map(question_of, missing), len(missing), check, keep, "asking")
    if faults:
        print(f"  failed tries: {counted(faults)}")
    for message in given_up[:SHOWN]:
        print(f"  given up: {message}")
    unanswered = len(keys) - len(answered)
    if unanswered > allow_missing:
        last = f"; the last fault was: {given_up[-1]}" if given_up else ""
        fault = f"{unanswered:,} of {len(keys):,} questions are unanswered{last}"
        raise UserError(f"{path}: {fault}; the same command asks only these")


@contextmanager
def _opened(path: Path):
    """The answer file for appending, by one process at a time; a line that a kill cut is removed."""
    lock = files.try_lock(path)
    if lock is None:
        raise UserError(f"{path}: another process is asking into this file; wait for it")
    try:
        with lock, open(path, "a+b") as log:
            if size := log.seek(0, os.SEEK_END):
                with mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    end = content.rfind(b"\n") + 1
                if end < size:
                    log.truncate(end)
                    print(f"  {path}: a half-written line of {size - end} bytes is cut off")
            yield log
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); what was answered is kept") from error


def _answered(path: Path, keys: Sequence[str], question_of, check) -> tuple[set[str], Counter]:
    """Keys whose very question has a usable answer in the file, and what the other lines are."""
    known, useless, wanted = set(), Counter(), set(keys)
    for _, _, value in files.scan_jsonl(path):
        try:
            key, digest, body = value["custom_id"], value["request_sha256"], value["response"]["body"]
            if key not in wanted:
                raise BadAnswer("to no question of this run")
            question = question_of(key)
            if digest != files.sha256_json(question.body):
                raise BadAnswer("to another request (settings, model)")
            check(question, body)
            known.add(key)
        except BadAnswer as error:
            useless[error.fault] += 1
        except (KeyError, TypeError):
            useless["not a line of ours"] += 1
    return known, useless

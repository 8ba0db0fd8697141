"""Import answers of a vLLM server as a rollout file."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspore_impl.data import answers
from mindspore_impl.data.rollouts import Rollout, flaws_of, to_sample, write_rollouts
from mindspore_impl.distill.rollout import Prompt, make_rollout
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.integrations.vllm.answers import (
    Answer,
    BadAnswer,
    Found,
    Output,
    Served,
    answer_at,
    check_tokenizer,
    look_through,
    outcome,
)
from mindspore_impl.integrations.vllm.topk import NEUTRAL
from mindspore_impl.text.chat import parse_completion
from mindspore_impl.text.records import check_text
from mindspore_impl.text.tokenizer import Tokenizer

CLOSED = "closing pieces that the engine had stripped were added"
BAR = -100.0  # the strongest bias the API takes


def rollout_request(prompt: Prompt, sampling: SamplingOptions, tokenizer: Tokenizer, model: str) -> dict:
    """The body for the completions endpoint. BOS is barred, as it is in our own generation."""
    return {
        "model": model,
        "prompt": prompt.ids,
        "add_special_tokens": False,
        "return_token_ids": True,
        "skip_special_tokens": False,
        **NEUTRAL,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": [tokenizer.eos_id, *sampling.stop_ids],
        "seed": prompt.seed,
    } | ({} if tokenizer.bos_id is None else {"logit_bias": {str(tokenizer.bos_id): BAR}})


def rollout_of(
    output: Output, prompt: Prompt, sampling: SamplingOptions, tokenizer: Tokenizer, weights_sha256: str | None,
    repairs: Counter,
) -> Rollout:  # fmt: skip
    """One output as a rollout. Log-probabilities of the completion, which an answer may hold, have no place in it.

    Args:
        output: what the server wrote.
        prompt: what it answers.
        sampling: how it was asked.
        tokenizer: of the server's model.
        weights_sha256: of that model, if known.
        repairs: counts closing pieces that are added, where an engine says `stop` without writing them.

    Raises BadAnswer for any other end than the closing piece, an id of `sampling.stop_ids` or the limit, and for what
    no rollout can be.
    """
    ids = None if output.ids is None else list(output.ids)
    stopped_by = (None, tokenizer.eos_id, tokenizer.template.turn_end)
    if ids and ids[-1] == tokenizer.eos_id:
        finished = True
    elif output.finish == "length" or output.finish == "stop" and output.stop in sampling.stop_ids:
        finished = False  # as in our own generation: only the end of turn finishes an answer
    elif output.finish == "stop" and output.stop in stopped_by:
        finished = True
        if ids is not None:
            ids.append(tokenizer.eos_id)
            repairs[CLOSED] += 1
    else:
        raise BadAnswer("ended otherwise", f"finish_reason {output.finish!r}, stop_reason {output.stop!r}")
    answer = output.text if ids is None else ids
    rollout = make_rollout(prompt, answer, finished, sampling, tokenizer, weights_sha256)
    try:
        check_text(rollout.text, "the answer")
        sample = to_sample(rollout, tokenizer)
    except UserError as error:
        raise BadAnswer("no rollout", str(error)) from error
    if answers.checkable(prompt.record):
        completion = parse_completion(sample.ids[sample.supervised], tokenizer)
        rollout.meta["correct"] = answers.correct(prompt.record, completion)
    return rollout


def import_rollouts(
    paths: Sequence[Path], prompts: Sequence[Prompt], sampling: SamplingOptions, tokenizer: Tokenizer,
    path: str | Path, weights_sha256: str | None = None, allow_missing: int = 0,
) -> dict:  # fmt: skip
    """Write a rollout file from answer files, in the order of the prompts; return what became of them.

    An answer is to the prompt that its custom_id names, else to those with its prompt ids, one output a sample.

    Args:
        paths: files of answers.
        prompts: what was asked.
        sampling: how it was asked.
        tokenizer: of the server's model.
        path: the rollout file.
        weights_sha256: of the server's model, if known.
        allow_missing: how many prompts may have no usable answer.

    Raises UserError when more have none.
    """
    by_key = {prompt.key: prompt for prompt in prompts}
    same_ids: dict[tuple[int, ...], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        same_ids[tuple(prompt.ids)].append(prompt)

    def served(answer: Answer, found: Found) -> Iterator[Served]:
        check_tokenizer(answer, tokenizer.sha256)
        waiting = _waiting(answer, by_key, same_ids, found.places)
        for part, output in enumerate(answer.outputs):
            if part == len(waiting):
                yield BadAnswer("to no question of ours", f"{len(answer.outputs) - part} outputs more than were wanted")
                return
            try:
                rollout_of(output, waiting[part], sampling, tokenizer, weights_sha256, Counter())
                yield waiting[part].key, part
            except BadAnswer as error:
                yield error

    found = look_through(paths, served, {key: f"prompt {key!r}" for key in by_key}, allow_missing)
    repairs, flaws, seen = Counter(), Counter(), set()

    def rollouts() -> Iterator[Rollout]:
        for prompt in prompts:
            if place := found.places.get(prompt.key):
                output = answer_at(place).outputs[place.part]
                rollout = rollout_of(output, prompt, sampling, tokenizer, weights_sha256, repairs)
                flaws.update(flaws_of(rollout, tokenizer, seen))
                yield rollout

    written = write_rollouts(path, rollouts())
    return {"rollouts": written, "missing": len(prompts) - written, "flaws": dict(flaws), **outcome(found, repairs)}


def _waiting(answer: Answer, by_key: dict, same_ids: dict, answered: dict) -> list[Prompt]:
    """The prompts that the outputs of an answer are for, in order."""
    named = by_key.get(answer.custom_id)
    if named is not None:
        if answer.prompt_ids is not None and answer.prompt_ids != named.ids:
            raise BadAnswer("about another prompt", f"custom_id {answer.custom_id!r}")
        return [named]
    if answer.prompt_ids is None:
        raise BadAnswer("to no question of ours", f"custom_id {answer.custom_id!r}, and there are no prompt_token_ids")
    alike = same_ids.get(tuple(answer.prompt_ids), [])
    if not alike:
        raise BadAnswer("to no question of ours", f"a prompt of {len(answer.prompt_ids)} tokens")
    waiting = [prompt for prompt in alike if prompt.key not in answered]
    if not waiting:
        raise BadAnswer("repeated", f"{alike[0].key!r} is answered already")
    return waiting

"""Rejection sampling: the pass rate of each prompt's answers, and the shortest right answer as a training record."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mindspore_impl.data import answers
from mindspore_impl.data.rollouts import Rollout, refuse_copies
from mindspore_impl.errors import UserError
from mindspore_impl.text.chat import Completion, parse_completion
from mindspore_impl.text.records import THINK_TAG, Message, Record
from mindspore_impl.text.template import REASONING_END
from mindspore_impl.text.tokenizer import Tokenizer

Prompt = tuple[str, str]  # id of the prompt's record and its thinking mode


@dataclass
class Verdict:
    """The verified answers to one prompt. `best` is the shortest right one that can be trained on."""

    answers: int = 0
    right: int = 0
    best: Rollout | None = None
    best_completion: Completion | None = None

    @property
    def pass_rate(self) -> float:
        """Share of right answers."""
        return self.right / self.answers


def judge(rollouts: Iterable[Rollout], tokenizer: Tokenizer) -> dict[Prompt, Verdict]:
    """A verdict for each prompt, in order of first appearance, independent of the order of its answers.

    `answers.correct` decides on each completion, whatever the file states; a truncated answer is wrong. The shortest
    answer has the fewest tokens; the first id breaks ties. Raises UserError naming a rollout without its prompt
    (meta.prompt_id) or task, and one of several greedy answers of the same weights.
    """
    verdicts: dict[Prompt, Verdict] = {}
    made = Counter()
    for rollout in rollouts:
        prompt = rollout.meta.get("prompt_id")
        if not isinstance(prompt, str) or not prompt:
            raise UserError(f"rollout {rollout.id!r}: meta.prompt_id is missing; name the answered record there")
        verdict = verdicts.setdefault((prompt, rollout.thinking), Verdict())
        verdict.answers += 1
        made[by := (prompt, rollout.thinking, rollout.weights_sha256)] += 1
        greedy = [rollout.sampling.get(key, default) for key, default in (("temperature", 1), ("top_k", 0))]
        refuse_copies(made[by], *greedy, f"rollout {rollout.id!r}: samples", "temperature")
        completion = parse_completion(rollout.completion_ids, tokenizer)
        question = Record(f"rollout {rollout.id}", rollout.messages, rollout.thinking, rollout.meta)
        if not answers.correct(question, completion):
            continue
        verdict.right += 1
        if rollout.thinking == "reasoning" and not tokenizer.template.thinks:  # no span: reasoning before the answer
            reasoning, _, answer = completion.answer.rpartition(REASONING_END)
            completion = replace(completion, reasoning=reasoning, answer=answer)
        trainable = rollout.thinking == "fast" or bool(completion.reasoning.strip())
        trainable &= not THINK_TAG.search(completion.reasoning + completion.answer)  # a record holds none
        if trainable and (verdict.best is None or _size(rollout) < _size(verdict.best)):
            verdict.best, verdict.best_completion = rollout, completion
    return verdicts


def best_record(verdict: Verdict, identity: str) -> Record | None:
    """The shortest right answer as a training record with the id `identity`; None when no answer was right.

    Its meta is the prompt's, with prompt_id, rollout (the id of the answer), and the counts answers and right.
    """
    rollout, completion = verdict.best, verdict.best_completion
    if rollout is None:
        return None
    reasoning = completion.reasoning if rollout.thinking == "reasoning" else None
    messages = (*rollout.messages, Message("assistant", completion.answer, reasoning))
    meta = {key: value for key, value in rollout.meta.items() if key not in ("sample", "correct")}
    meta |= {"rollout": rollout.id, "answers": verdict.answers, "right": verdict.right}
    return Record(identity, messages, rollout.thinking, meta)


def _size(rollout: Rollout) -> tuple[int, str]:
    return len(rollout.completion_ids), rollout.id

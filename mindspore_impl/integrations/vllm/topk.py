"""Import a teacher's top-K log-probabilities from vLLM's `prompt_logprobs` as a teacher store.

vLLM gives one entry a prompt token: null for the first, and for token i the distribution that PREDICTED it, which the
model said at position i - 1. `packing.shift` owns our side: position t predicts token t + 1, so the row of position t
is entry t + 1. An entry maps ids to log-probabilities: the K most probable ones and, when it is not among them, the
prompt's own token, which makes K + 1. That one is not part of the top K and is dropped.

The temperature is 1. The K log-probabilities at T = 1 do not fix those at another T: the normaliser at T needs every
logit. Only their ratios can be tempered, which would serve the support `renormalised` alone, and a store does not say
which support it is for; so T != 1 is refused.

Legend: S supervised targets of a sequence, K teacher ids.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspore_impl import files
from mindspore_impl.data.packing import shift
from mindspore_impl.data.teacher_store import (
    MANIFEST,
    StoreHeader,
    StoreReader,
    check_same_header,
    read_header,
    sample_key,
)
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.distill.capture import distinct, store_metrics
from mindspore_impl.errors import UserError
from mindspore_impl.integrations.vllm.answers import (
    Answer,
    BadAnswer,
    Served,
    answer_at,
    check_tokenizer,
    look_through,
    outcome,
)
from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.text.chat import Sample

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]

SUM_ABOVE = 1e-3  # how far rounding may lift the sum of K masses above 1; servers round to about 4 decimals at worst
# The K masses are float32, so a tail below their resolution is not known: it is taken for this much, not for nothing.
TAIL_RESOLUTION = math.log(2.0**-23)
NEUTRAL = {  # sampling settings that leave the model's distribution as it is
    "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
SCALED, TAIL_UNKNOWN = "rows summed to more than 1 and were scaled", "tails were below the resolution of float32"


def topk_request(sample: Sample, top_k: int, model: str) -> dict:
    """The body for the completions endpoint, with every sampling setting.

    Otherwise the server applies those of its model's `generation_config.json`.
    """
    return {
        "model": model,
        "prompt": [int(token_id) for token_id in sample.ids],
        "prompt_logprobs": top_k,
        "max_tokens": 1,  # 0 is refused by many versions; the one token is thrown away
        "add_special_tokens": False,
        "return_token_ids": True,
        **NEUTRAL,
    }


def external_header(
    teacher_sha256: str, tokenizer_sha256: str, vocab_size: int, top_k: int, temperature: float
) -> StoreHeader:
    """The header of an imported store.

    Args:
        teacher_sha256: of the teacher's weights, or of its name.
        tokenizer_sha256: of the tokenizer.
        vocab_size: of the tokenizer.
        top_k: K, ids a row.
        temperature: that the objective asks for.

    Raises UserError for a temperature other than 1, and K above the vocabulary.
    """
    if temperature != 1:
        fault = "a server's log-probabilities are those at 1, and K of them do not fix the normaliser at another"
        remedy = "set capture.temperature=1 and objective.temperature=1, or capture in process"
        raise UserError(f"capture.temperature: {temperature}, but {fault}; {remedy}")
    if not 1 <= top_k <= vocab_size:
        raise UserError(f"capture.top_k: {top_k} is not between 1 and the vocabulary of {vocab_size}")
    return StoreHeader(teacher_sha256, tokenizer_sha256, vocab_size, top_k, 1.0, "top_k")


def teacher_rows(answer: Answer, sample: Sample, header: StoreHeader, repairs: Counter) -> Rows:
    """The rows of one sequence: (teacher_ids_SK int32, teacher_logp_SK float32, tail_logp_S float32).

    The tail is log1p(-sum) of the K masses in float64. `repairs` counts what was mended. Raises BadAnswer when the
    answer is not about exactly this sequence, or an entry that is needed is no top-K of a distribution.
    """
    entries = _entries(answer, sample)
    position_S = _positions(sample)
    rows = [_row(entries[t + 1], int(sample.ids[t + 1]), header, f"token {t + 1}") for t in position_S]
    ids_SK = np.array([ids for ids, _ in rows], np.int32)
    logp_SK = np.array([logp for _, logp in rows], np.float64)
    sum_S = np.exp(logp_SK).sum(1)
    if (sum_S > 1 + SUM_ABOVE).any():
        worst = int(np.argmax(sum_S))
        raise BadAnswer("masses sum to more than 1", f"{sum_S[worst]:.6f} at token {position_S[worst] + 1}")
    above_S = sum_S > 1
    logp_SK -= np.where(above_S, np.log(np.maximum(sum_S, 1)), 0)[:, None]
    repairs[SCALED] += int(above_S.sum())
    if header.top_k == header.vocab_size:
        tail_S = np.full(len(rows), LOG_FLOOR)
    else:
        with np.errstate(divide="ignore"):
            tail_S = np.log1p(-np.minimum(sum_S, 1))
        repairs[TAIL_UNKNOWN] += int((tail_S < TAIL_RESOLUTION).sum())
        tail_S = np.maximum(tail_S, TAIL_RESOLUTION)
    return ids_SK, logp_SK.astype(np.float32), tail_S.astype(np.float32)


def _positions(sample: Sample) -> np.ndarray:
    """Where the rows of a sample are read: the positions before its supervised tokens."""
    return np.flatnonzero(shift(sample.ids, sample.supervised)[1])


def slimmed(body: dict, sample: Sample) -> dict:
    """A checked answer of the server without ranks, token texts and the entries of tokens that are not supervised."""
    needed = {int(t) + 1 for t in _positions(sample)}
    choice = body["choices"][0]
    entries = [
        {name: value["logprob"] if isinstance(value, dict) else value for name, value in entry.items()}
        if place in needed
        else None
        for place, entry in enumerate(choice["prompt_logprobs"])
    ]
    return {**body, "choices": [{**choice, "prompt_logprobs": entries}]}


def _entries(answer: Answer, sample: Sample) -> list:
    """The entries of `prompt_logprobs`, once they are seen to be about this very sequence."""
    length, entries = len(sample.ids), answer.prompt_logprobs
    if not isinstance(entries, list):
        raise BadAnswer("no prompt_logprobs", "ask with prompt_logprobs=K")
    if answer.prompt_ids is not None and answer.prompt_ids != sample.ids.tolist():
        raise BadAnswer("about another prompt", f"of {len(answer.prompt_ids)} tokens, not the {length} that were asked")
    if len(entries) != length:
        raise BadAnswer("of another length", f"{len(entries)} entries for a sequence of {length} tokens")
    if entries[0] is not None:
        raise BadAnswer("not shifted as vLLM's", "the first entry is not null, though nothing predicts the first token")
    for place, (token_id, entry) in enumerate(zip(sample.ids.tolist(), entries, strict=True)):
        # vLLM always adds the prompt's own token, so its absence shows another prompt or another shift.
        if isinstance(entry, dict) and str(token_id) not in entry:
            raise BadAnswer("about another prompt", f"entry {place} lacks the prompt's own token {token_id}")
    return entries


def _row(entry, own: int, header: StoreHeader, where: str) -> tuple[list[int], list[float]]:
    """The K most probable ids of an entry and their log-probabilities, falling; `own` is the prompt's token there."""
    if not isinstance(entry, dict):
        raise BadAnswer("null entry", where)
    try:
        ids = [int(name) for name in entry]
        # Older scripts give the bare number.
        logps = [value["logprob"] if type(value) is dict else value for value in entry.values()]
    except (ValueError, KeyError) as error:
        raise BadAnswer("another form", f"{where}: {error}") from error
    if list(map(str, ids)) != list(entry) or not {*map(type, logps)} <= {float, int}:
        raise BadAnswer("another form", f"{where}: it must map ids to log-probabilities")
    if len(ids) < header.top_k:
        raise BadAnswer("fewer than K ids", f"{where}: {len(ids)}, but K is {header.top_k}")
    if min(ids) < 0 or max(ids) >= header.vocab_size:
        worst = min(ids) if min(ids) < 0 else max(ids)
        raise BadAnswer("id out of range", f"{where}: {worst}, but the vocabulary has {header.vocab_size}")
    if any(logp != logp for logp in logps):
        raise BadAnswer("NaN", where)
    if max(logps) > 1e-4:
        raise BadAnswer("log-probability above 0", f"{where}: {max(logps):g}; does the server give raw_logits?")
    # Of equals, the added token comes last.
    order = sorted(range(len(ids)), key=lambda n: (-logps[n], ids[n] == own, ids[n]))[: header.top_k]
    return [ids[n] for n in order], [max(logps[n], LOG_FLOOR) for n in order]


def import_topk(paths: Sequence[Path], samples: Sequence[Sample], header: StoreHeader, folder: str | Path) -> dict:
    """Make the store `folder` from answer files; return its metrics and what was repaired or refused.

    Sequences are written in the order of `samples`, in place of an earlier import. Raises UserError when a sample has
    no usable answer, or `folder` holds something else or a store of another header; what is there stays then.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        check_same_header(read_header(folder), header, folder / MANIFEST)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not a finished teacher store; choose another --output")
    samples = distinct(samples)
    by_key = {sample_key(sample.ids): sample for sample in samples}

    def served(answer: Answer, _) -> list[Served]:
        check_tokenizer(answer, header.tokenizer_sha256)
        key = answer.custom_id if answer.custom_id in by_key else None
        if key is None and answer.prompt_ids is not None:
            key = sample_key(np.array(answer.prompt_ids, np.int64))
        if key not in by_key:
            raise BadAnswer("to no question of ours", f"custom_id {answer.custom_id!r}")
        teacher_rows(answer, by_key[key], header, Counter())
        return [(key, 0)]

    found = look_through(paths, served, {key: f"record {sample.record_id!r}" for key, sample in by_key.items()})
    repairs: Counter = Counter()

    def fill(temporary: Path) -> None:
        writer = StoreWriter(temporary, header)
        for key, sample in by_key.items():
            rows = teacher_rows(answer_at(found.places[key]), sample, header, repairs)
            writer.add(sample.ids, sample.supervised, *rows)
        writer.close()

    files.new_folder(folder, fill, replace=True)
    return {**store_metrics(StoreReader(folder), samples), **outcome(found, repairs)}

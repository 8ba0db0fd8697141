"""Offline on-policy generations: every prompt is answered once, or several times, by one fixed set of weights.

The work is cut into parts of about `prompts_per_part` prompts (see `distributed/resumable.py`): ranks share the parts,
and a killed stage continues with the next one. A part is always generated whole, in the same batches, so rollouts.jsonl
is byte for byte the same for any number of ranks and interruptions.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.data.rollouts import Rollout, flaws_of, read_rollouts, write_rollouts
from mindspore_impl.distill.jobs import RolloutJob
from mindspore_impl.distill.options import RolloutOptions
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import sample_seed
from mindspore_impl.schema import check_ranges
from mindspore_impl.text.chat import parse_completion, render_prompt
from mindspore_impl.text.records import Record, messages_to_json, prompt_messages
from mindspore_impl.text.tokenizer import Tokenizer

# What can be wrong with an answer: the share of all answers above which it is warned about, and what helps.
FLAWS = {
    "truncated": (0.2, "raise sampling.max_new_tokens"),
    "empty": (0.02, "look at the prompts and at what the weights were trained on"),
    "looping": (0.05, "train the weights longer, or set sampling.repetition_penalty above 1"),
    "nan": (0.0, "left out, as their logits are not finite: the weights are damaged"),
    "copies": (0.5, "of another answer to the same prompt: raise sampling.temperature"),
}
_COUNTED = ["generations", "finished", "tokens", "checked", "correct", *FLAWS]  # in the record of a part


@dataclass(frozen=True)
class Prompt:
    """One requested generation: sample `index` of a record. `key` is the id of its rollout."""

    key: str
    record: Record
    index: int
    ids: list[int]
    seed: int


def prompts_of(records: Sequence[Record], tokenizer: Tokenizer, samples_per_prompt: int, seed: int) -> list[Prompt]:
    """`samples_per_prompt` prompts for each record, rendered in its own thinking mode, in order.

    Raises UserError as `check_unique` does.
    """
    check_unique(records)
    prompts = []
    for record in records:
        ids = list(render_prompt(prompt_messages(record), tokenizer, record.thinking))
        for index in range(samples_per_prompt):
            key, own_seed = rollout_id(record, index), sample_seed(seed, record.id, index)
            prompts.append(Prompt(key, record, index, ids, own_seed))
    return prompts


def make_rollout(
    prompt: Prompt,
    answer: list[int] | str,
    finished: bool,
    sampling: SamplingOptions,
    tokenizer: Tokenizer,
    weights_sha256: str | None,
) -> Rollout:
    """The rollout record of one generation.

    Args:
        prompt: What was asked.
        answer: The generated ids; the text, special pieces included, where the engine returns no more.
        finished: Whether the model ended its turn; a generation cut by the token limit must never train as if it had.
        sampling: The decoding settings.
        tokenizer: The tokenizer of the ids.
        weights_sha256: Hash of the weights that generated it, where known.
    """
    ids, text = (None, answer) if isinstance(answer, str) else (answer, tokenizer.decode(answer, skip_special=False))
    record, finish = prompt.record, "stop" if finished else "length"
    settings = sampling_settings(sampling) | {"seed": prompt.seed}
    meta = {**record.meta, "prompt_id": record.id, "sample": prompt.index}
    made_by = (weights_sha256, tokenizer.sha256, settings, meta)
    return Rollout(prompt.key, prompt_messages(record), record.thinking, prompt.ids, ids, text, finish, *made_by)


def rollout_id(record: Record, index: int) -> str:
    """The id of one generation. It names the thinking mode, as one problem may be asked in both."""
    return f"{record.id}/{record.thinking}#{index}"


def check_unique(records: Sequence[Record], sets: Sequence[str] | None = None, where: str = "prompts") -> None:
    """Raise UserError when there is no record, or two would give rollouts of the same id. sets: of each record."""
    if not records:
        raise UserError(f"{where}: no prompt to answer; check their sets, and `rollout.limit`")
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        if (first := seen.setdefault(rollout_id(record, 0), number)) != number:
            places = f", in the sets {sets[first]!r} and {sets[number]!r}" if sets else ""
            fault = f"two {record.thinking} prompts have the id {record.id!r}{places}"
            raise UserError(f"{where}: {fault}; give them different ids in their files, or leave one of them out")


def sampling_settings(sampling: SamplingOptions) -> dict:
    """The sampling options that determine the result, which the batch size does not."""
    return {key: value for key, value in asdict(sampling).items() if key != "batch_size"}


def run_rollout(job: RolloutJob) -> dict:
    """Answer the prompts of `job` into rollouts.jsonl, resuming after the parts that exist.

    Returns metrics over all ranks and interruptions: prompts, generations, kept, finished_share, flaws ({name: how many
    generations}, see FLAWS), tokens (generated), seconds, tokens_per_second, and correct_share where something could be
    checked. A generation that meets NaN logits is left out. Raises UserError when there is no prompt, or nothing is
    left to keep.
    """
    records, options, sampling, tokenizer = job.records, job.options, job.sampling, job.tokenizer
    check_ranges(options, f"{job.key}rollout")
    check_unique(records, where=f"{job.key}prompts")
    asked = [[rollout_id(record, 0), messages_to_json(prompt_messages(record)), record.meta] for record in records]
    made_by = [job.weights_sha256, tokenizer.sha256, runtime.numerics(), _COUNTED]
    answers = files.sha256_json([asked, options.samples_per_prompt, sampling_settings(sampling), made_by, job.seed])
    plan = files.sha256_json([answers, options.keep_truncated])
    path = job.folder / "rollouts.jsonl"
    if (metrics := ranks.on_rank_zero(lambda: resumable.result(path, plan))) is not None:
        return metrics
    size = _part_size(options, sampling)
    spans = [records[first : first + size] for first in range(0, len(records), size)]
    # Another batch size may change rounding, so its parts have another name.
    place = job.folder / resumable.FOLDER / f"{answers[:16]}_{size}_{sampling.batch_size}"
    paths = [place / f"part_{number:05d}.jsonl" for number in range(len(spans))]

    @functools.cache
    def engine():
        if job.make_engine is not None:
            return job.make_engine(job.model, tokenizer)
        from mindspore_impl.generation.engine import Engine  # imports mindspore, which a finished stage does not need

        return Engine(job.model, tokenizer, skip_nan=True)

    def make(number: int) -> tuple[resumable.Publish, dict]:
        title = f"rollout part {number + 1}/{len(spans)}"
        prompts = prompts_of(spans[number], tokenizer, options.samples_per_prompt, job.seed)
        try:
            generations = engine().generate(
                [prompt.ids for prompt in prompts], sampling, [prompt.seed for prompt in prompts], progress=title
            )
        except UserError as error:
            first, last = spans[number][0].id, spans[number][-1].id
            raise UserError(f"{title}, records {first!r} to {last!r}: {error}") from error
        items = []
        for prompt, generation in zip(prompts, generations, strict=True):
            if getattr(generation, "nan", False):  # our own engine tells
                continue
            ids = [int(i) for i in generation.ids]
            items.append(make_rollout(prompt, ids, generation.finished, sampling, tokenizer, job.weights_sha256))
            right = job.check(prompt.record, parse_completion(ids, tokenizer)) if job.check else None
            if right is not None:
                items[-1].meta["correct"] = bool(right)
        return lambda path: write_rollouts(path, items), _counts(items, len(prompts), tokenizer)

    counts = resumable.share(paths, make)
    return ranks.on_rank_zero(lambda: _publish(job, path, plan, paths, counts))


def _part_size(options: RolloutOptions, sampling: SamplingOptions) -> int:
    """Prompts of a part: at least `prompts_per_part`, and whole batches, so that none is decoded half empty."""
    batches = -(-options.prompts_per_part * options.samples_per_prompt // sampling.batch_size)
    return max(batches * sampling.batch_size // options.samples_per_prompt, options.prompts_per_part)


def _counts(items: list[Rollout], generations: int, tokenizer: Tokenizer) -> dict[str, int]:
    """What the metrics need to know of one part: of `generations` those that are answers are `items`."""
    checked = [item.meta["correct"] for item in items if "correct" in item.meta]
    seen: set[int] = set()
    flaws = Counter(flaw for item in items for flaw in flaws_of(item, tokenizer, seen))
    flaws["nan"] = generations - len(items)
    return {
        "generations": generations,
        "finished": sum(item.finish == "stop" for item in items),
        "tokens": sum(len(item.completion_ids) for item in items),
        "checked": len(checked),
        "correct": sum(checked),
        **{name: flaws[name] for name in FLAWS},
    }


def _publish(job: RolloutJob, path: Path, plan: str, parts: list[Path], counts: list[dict]) -> dict:
    """Merge `parts`, whose records are `counts`, into `path` and return the metrics of all."""
    totals = {key: sum(count[key] for count in counts) for key in _COUNTED}
    generations, keep_truncated = totals["generations"], job.options.keep_truncated
    kept = generations - totals["nan"] if keep_truncated else totals["finished"]
    if kept == 0:
        fault = f"{totals['nan']} of {generations} generations met NaN logits, the others were cut by the token limit"
        keys = f"raise {job.key}sampling.max_new_tokens, or set {job.key}rollout.keep_truncated=true"
        raise UserError(f"{path}: {fault}; check the weights, {keys}")
    for name, (share, advice) in FLAWS.items():
        if totals[name] > share * generations:
            print(f"warning: {job.folder.name}: {totals[name]:,} of {generations:,} answers: {name}; {advice}")
    seconds = resumable.seconds(counts)
    metrics = {
        "prompts": len(job.records),
        "generations": generations,
        "kept": kept,
        "finished_share": totals["finished"] / generations,
        "flaws": {name: totals[name] for name in FLAWS},
        "tokens": totals["tokens"],
        "seconds": seconds,
        "tokens_per_second": totals["tokens"] / max(seconds, 1e-9),
    }
    if totals["checked"]:
        metrics["correct_share"] = totals["correct"] / totals["checked"]
    merged = (
        item
        for part, count in zip(parts, counts, strict=True)
        if count["generations"] > count["nan"]
        for item in read_rollouts(part, job.tokenizer, keep_truncated=True)
        if keep_truncated or item.finish == "stop"
    )
    return resumable.publish_result(path, lambda temporary: write_rollouts(temporary, merged), plan, metrics)

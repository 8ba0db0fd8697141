"""Offline on-policy generations: each prompt answered once (or several times) by one fixed set of weights.

The work is cut into parts of about `prompts_per_part` prompts (see `data/parts.py`): a killed stage goes on at the next
part, several ranks share the parts, and rank 0 merges them. A part is always generated whole, in the same batches, so
rollouts.jsonl is byte for byte the same whatever number of ranks made it and however often they were interrupted.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.data.rollouts import Rollout, read_rollouts, write_rollouts
from mindspore_impl.distill.options import RolloutOptions
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import sample_seed
from mindspore_impl.text.chat import Completion, parse_completion, render_prompt
from mindspore_impl.text.records import Record, messages_to_json, prompt_messages

Check = Callable[[Record, Completion], bool | None]


def run_rollout(
    model,
    tokenizer,
    records: list[Record],
    options: RolloutOptions,
    sampling: SamplingOptions,
    weights_sha256: str,
    folder: Path,
    seed: int,
    check: Check | None = None,
) -> dict:
    """Answer the records' prompts with `model`, in each record's own thinking mode, into `folder`/rollouts.jsonl.

    All of `records` are answered: `options.limit`, which counts a set, is applied where the sets are put together.
    `check(record, completion)` says whether an answer is right, or None where that cannot be told. Returns metrics:
    prompts, generations, kept, finished_share, tokens (generated), seconds, tokens_per_second, and correct_share
    where something could be checked, of all ranks and of an interrupted run's parts, too. Raises UserError when there
    is no prompt, or nothing is left to keep.
    """
    from mindspore_impl.generation.engine import Engine  # imports mindspore, which a finished stage does not need

    def make_engine():
        return Engine(model, tokenizer)

    return roll_out(make_engine, tokenizer, records, options, sampling, weights_sha256, folder, seed, check)


def roll_out(
    make_engine: Callable,
    tokenizer,
    records: list[Record],
    options: RolloutOptions,
    sampling: SamplingOptions,
    weights_sha256: str,
    folder: Path,
    seed: int,
    check: Check | None = None,
) -> dict:
    """`run_rollout` over any engine: `make_engine()` is called once, when something is left to generate."""
    folder = Path(folder)
    for key in ("samples_per_prompt", "prompts_per_part"):
        if getattr(options, key) < 1:
            raise UserError(f"{folder.name}: rollout.{key} is {getattr(options, key)}; use 1 or more")
    if not records:
        raise UserError(f"{folder.name}: no prompt to answer; check the sets in the stage's `prompts`, `rollout.limit`")
    _check_unique(records, folder.name)
    asked = [[rollout_id(record, 0), messages_to_json(prompt_messages(record)), record.meta] for record in records]
    made_by = [weights_sha256, tokenizer.sha256, runtime.numerics()]
    answers = files.sha256_json([asked, options.samples_per_prompt, sampling_settings(sampling), made_by, seed])
    plan = files.sha256_json([answers, options.keep_truncated])
    if (metrics := ranks.on_rank_zero(lambda: resumable.result(folder / "rollouts.jsonl", plan))) is not None:
        return metrics
    size = _part_size(options, sampling)
    spans = [records[first : first + size] for first in range(0, len(records), size)]
    # Parts of other answers, or in other batches (which may change rounding), are never read: another name.
    place = folder / resumable.FOLDER / f"{answers[:16]}_{size}_{sampling.batch_size}"
    paths = [place / f"part_{number:05d}.jsonl" for number in range(len(spans))]
    engine = functools.cache(make_engine)

    def make(number: int) -> tuple[resumable.Publish, dict]:
        title = f"rollout part {number + 1}/{len(spans)}"
        items = _generate(engine(), tokenizer, spans[number], options, sampling, weights_sha256, seed, title, check)
        return lambda path: write_rollouts(path, items), _note(items)

    notes = resumable.share(paths, make)
    return ranks.on_rank_zero(
        lambda: _publish(folder, plan, paths, notes, len(records), tokenizer, options.keep_truncated)
    )


def rollout_id(record: Record, index: int) -> str:
    """The name of one generation. The thinking mode is part of it: one problem may be asked in both."""
    return f"{record.id}/{record.thinking}#{index}"


def _check_unique(records: list[Record], stage: str) -> None:
    seen = set()
    for record in records:
        if (name := rollout_id(record, 0)) in seen:
            raise UserError(
                f"{stage}: two {record.thinking} prompts have the id {record.id!r}; give the records of all sets in "
                "`prompts` different ids, or name a set once"
            )
        seen.add(name)


def _part_size(options: RolloutOptions, sampling: SamplingOptions) -> int:
    """Prompts of a part: at least `prompts_per_part`, and whole batches, so that none is decoded half empty."""
    batches = -(-options.prompts_per_part * options.samples_per_prompt // max(sampling.batch_size, 1))
    return max(batches * sampling.batch_size // options.samples_per_prompt, options.prompts_per_part)


def sampling_settings(sampling: SamplingOptions) -> dict:
    """What of the sampling options shapes the result; the batch size does not."""
    return {key: value for key, value in asdict(sampling).items() if key != "batch_size"}


def _generate(engine, tokenizer, records, options, sampling, weights_sha256, seed, title, check) -> list[Rollout]:
    """One part's generations, in the order of records and samples."""
    tasks = [(record, index) for record in records for index in range(options.samples_per_prompt)]
    rendered = {id(r): render_prompt(prompt_messages(r), tokenizer, r.thinking) for r in records}
    prompts = [rendered[id(record)] for record, _ in tasks]
    seeds = [sample_seed(seed, record.id, index) for record, index in tasks]
    try:
        generations = engine.generate(prompts, sampling, seeds, progress=title)
    except UserError as error:
        first, last = records[0].id, records[-1].id
        raise UserError(f"{title}, records {first!r} to {last!r}: {error}") from error
    items = []
    for (record, index), prompt, own_seed, generation in zip(tasks, prompts, seeds, generations, strict=True):
        ids = [int(i) for i in generation.ids]
        meta = {**record.meta, "prompt_id": record.id, "sample": index}
        right = check(record, parse_completion(ids, tokenizer)) if check else None
        if right is not None:
            meta["correct"] = bool(right)
        items.append(
            Rollout(
                id=rollout_id(record, index),
                messages=prompt_messages(record),
                thinking=record.thinking,
                prompt_ids=list(prompt),
                completion_ids=ids,
                text=tokenizer.decode(ids, skip_special=False),
                # A cut answer must never be trained on as if it had ended.
                finish="stop" if generation.finished else "length",
                weights_sha256=weights_sha256,
                tokenizer_sha256=tokenizer.sha256,
                sampling={**sampling_settings(sampling), "seed": own_seed},
                meta=meta,
            )
        )
    return items


def _note(items: list[Rollout]) -> dict:
    """What the metrics need to know of one part."""
    checked = [item.meta["correct"] for item in items if "correct" in item.meta]
    return {
        "generations": len(items),
        "finished": sum(item.finish == "stop" for item in items),
        "tokens": sum(len(item.completion_ids) for item in items),
        "checked": len(checked),
        "correct": sum(checked),
    }


def _publish(folder, plan, paths, notes, prompts, tokenizer, keep_truncated) -> dict:
    """Merge the parts `paths`, of which `notes` tell, into rollouts.jsonl; return the metrics of all."""
    keys = ("generations", "finished", "tokens", "checked", "correct")
    totals = {key: sum(note[key] for note in notes) for key in keys}
    kept = totals["generations" if keep_truncated else "finished"]
    lines = folder / "rollouts.jsonl"
    if kept == 0:
        raise UserError(
            f"{lines}: all {totals['generations']} generations were cut and rollout.keep_truncated is false; "
            "raise sampling.max_new_tokens or keep truncated answers"
        )
    seconds = resumable.seconds(notes)
    metrics = {
        "prompts": prompts,
        "generations": totals["generations"],
        "kept": kept,
        "finished_share": totals["finished"] / totals["generations"],
        "tokens": totals["tokens"],
        "seconds": seconds,
        "tokens_per_second": totals["tokens"] / max(seconds, 1e-9),
    }
    if totals["checked"]:
        metrics["correct_share"] = totals["correct"] / totals["checked"]

    def merged() -> Iterator[Rollout]:
        for path in paths:
            for item in read_rollouts(path, tokenizer, keep_truncated=True):
                if keep_truncated or item.finish == "stop":
                    yield item

    return resumable.publish_result(lines, lambda path: write_rollouts(path, merged()), plan, metrics)

"""Offline on-policy generations: each prompt answered once (or several times) by one fixed set of weights.

The work is cut into parts of about `prompts_per_part` prompts. A part is published atomically, so a killed stage goes
on at the next part; with several ranks each takes every world_size-th part and rank 0 merges them. A rank that fails
leaves `failed_<rank>.json`, so that the others do not wait for it for ever.
"""

import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.data.rollouts import Rollout, read_rollouts, write_rollouts
from mindspore_impl.distill.options import RolloutOptions
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Completion, parse_completion, render_prompt
from mindspore_impl.text.records import Record, prompt_messages

Check = Callable[[Record, Completion], bool | None]
WAIT_SECONDS = 0.5  # between two looks at what the other ranks have published
STALE_SECONDS = 60.0  # a failure found at the start counts after this long: it may be an earlier run's, not yet cleared


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
    where something could be checked. Raises UserError when there is no prompt, nothing is left to keep, or another
    rank has failed.
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
    names = [rollout_id(record, 0) for record in records]
    hashes = [weights_sha256, tokenizer.sha256]
    answers = files.sha256_json([names, options.samples_per_prompt, _settings(sampling), hashes, seed])
    plan = files.sha256_json([answers, options.keep_truncated])
    if (metrics := _finished(folder, plan)) is not None:
        return metrics
    size = _part_size(options, sampling)
    # Parts of other answers, or of another size, are never read: they live under another name.
    parts = folder / "parts" / f"{answers[:16]}_{size}"
    spans = [records[first : first + size] for first in range(0, len(records), size)]

    def generate(engine, span: list[Record], title: str) -> list[Rollout]:
        return _generate(engine, tokenizer, span, options, sampling, weights_sha256, seed, title, check)

    with _Failures(folder) as failures:
        engine, found = None, {}
        for number in range(runtime.rank(), len(spans), runtime.world_size()):
            if (metrics := _part_metrics(parts, number)) is None:
                engine = engine or make_engine()
                started = time.perf_counter()
                title = f"rollout part {number + 1}/{len(spans)}"
                items = generate(engine, spans[number], title)
                metrics = _write_part(parts, number, items, time.perf_counter() - started)
            found[number] = metrics
        if runtime.rank() != 0:
            return failures.wait_for(lambda: _finished(folder, plan))
        for number in range(len(spans)):
            if number not in found:
                found[number] = failures.wait_for(functools.partial(_part_metrics, parts, number))
        found = [found[number] for number in range(len(spans))]
        return _publish(folder, plan, parts, found, len(records), tokenizer, options.keep_truncated)


class _Failures:
    """Tells the other ranks when this one fails, and raises here what one of them has told.

    Each rank clears its own file when it starts. Another's that stands already may be of an earlier run.
    """

    def __init__(self, folder: Path):
        self.own = _failure(folder, runtime.rank())
        self.own.unlink(missing_ok=True)
        others = [rank for rank in range(runtime.world_size()) if rank != runtime.rank()]
        self.others = {rank: _failure(folder, rank) for rank in others}
        self.standing = {rank: _changed(path) for rank, path in self.others.items()}
        self.started = time.monotonic()

    def __enter__(self) -> "_Failures":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.others and isinstance(error, Exception):
            files.write_json(self.own, {"error": str(error) or kind.__name__})

    def wait_for(self, look: Callable[[], dict | None]) -> dict:
        """What `look` gives, once it gives something. Raises UserError when another rank has failed meanwhile."""
        while (value := look()) is None:
            for rank, path in self.others.items():
                changed = _changed(path)
                old = changed == self.standing[rank] and time.monotonic() - self.started < STALE_SECONDS
                if changed is not None and not old:
                    raise UserError(f"{path}: rank {rank} has failed: {files.read_json(path)['error']}")
            time.sleep(WAIT_SECONDS)
        return value


def _failure(folder: Path, rank: int) -> Path:
    return folder / f"failed_{rank}.json"


def _changed(path: Path) -> int | None:
    """When the file was written (ns), None when there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def sample_seed(seed: int, record_id: str, index: int) -> int:
    """The seed (60 bits) of one generation: a function of the run, the record and the sample, never of the batch."""
    return int(files.sha256_json([seed, record_id, index])[:15], 16)


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


def _settings(sampling: SamplingOptions) -> dict:
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
                sampling={**_settings(sampling), "seed": own_seed},
                meta=meta,
            )
        )
    return items


def _write_part(parts: Path, number: int, items: list[Rollout], seconds: float) -> dict:
    """Publish one part, return its metrics; its JSON file is written last and vouches for the lines."""
    lines = parts / f"part_{number:05d}.jsonl"
    write_rollouts(lines, items)
    checked = [item.meta["correct"] for item in items if "correct" in item.meta]
    metrics = {
        "sha256": files.sha256_file(lines),
        "rank": runtime.rank(),
        "generations": len(items),
        "finished": sum(item.finish == "stop" for item in items),
        "tokens": sum(len(item.completion_ids) for item in items),
        "checked": len(checked),
        "correct": sum(checked),
        "seconds": seconds,
    }
    files.write_json(parts / f"part_{number:05d}.json", metrics)
    return metrics


def _part_metrics(parts: Path, number: int) -> dict | None:
    """The metrics of a part that is complete and undamaged, else None."""
    lines, summary = parts / f"part_{number:05d}.jsonl", parts / f"part_{number:05d}.json"
    if not (lines.exists() and summary.exists()):
        return None
    metrics = files.read_json(summary)
    return metrics if metrics["sha256"] == files.sha256_file(lines) else None


def _finished(folder: Path, plan: str) -> dict | None:
    """The metrics of this very plan when its rollouts.jsonl is published and intact, else None."""
    summary, lines = folder / "rollout.json", folder / "rollouts.jsonl"
    if not (summary.exists() and lines.exists()):
        return None
    value = files.read_json(summary)
    return value["metrics"] if value["plan"] == plan and value["sha256"] == files.sha256_file(lines) else None


def _publish(folder, plan, parts, found, prompts, tokenizer, keep_truncated) -> dict:
    """Merge the parts, whose metrics are `found`, into rollouts.jsonl, then drop them; return the metrics of all."""
    kept = 0

    def merged():
        nonlocal kept
        for number in range(len(found)):
            for item in read_rollouts(parts / f"part_{number:05d}.jsonl", tokenizer, keep_truncated=True):
                if keep_truncated or item.finish == "stop":
                    kept += 1
                    yield item

    lines = folder / "rollouts.jsonl"
    write_rollouts(lines, merged())
    keys = ("generations", "finished", "tokens", "checked", "correct")
    totals = {key: sum(part[key] for part in found) for key in keys}
    if kept == 0:
        raise UserError(
            f"{lines}: all {totals['generations']} generations were cut and rollout.keep_truncated is false; "
            "raise sampling.max_new_tokens or keep truncated answers"
        )
    ranks = {part["rank"] for part in found}
    # Ranks work side by side: the slowest one's time is the stage's.
    seconds = max(sum(part["seconds"] for part in found if part["rank"] == rank) for rank in ranks)
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
    files.write_json(folder / "rollout.json", {"plan": plan, "sha256": files.sha256_file(lines), "metrics": metrics})
    shutil.rmtree(folder / "parts", ignore_errors=True)
    return metrics

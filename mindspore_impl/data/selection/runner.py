"""Runs a recipe: sets -> steps -> selected.jsonl, with a report, and without doing again what is done."""

import json
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.data.selection.reader import count_lines, read_set
from mindspore_impl.data.selection.recipe import PlannedStep, Recipe
from mindspore_impl.data.selection.report import markdown
from mindspore_impl.data.selection.stream import Check, Context, Item
from mindspore_impl.data.selection.tally import Tally
from mindspore_impl.data.selection.words import hash64
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import record_to_json

FORMAT = 2  # of what the steps do: raised when the same recipe would select something else
MENDS = "broken_unicode"  # the step for whose sake half surrogate pairs are let in
MENDED = "lines in which half a surrogate pair became U+FFFD"


def run(recipe: Recipe, name: str, force: bool = False) -> dict | None:
    """Select into the folder `recipe.options.output`; returns the report, or None where nothing has changed.

    The folder gets selected.jsonl, report.json, report.md, selection.json (what it was made of) and, where asked
    for, dropped.jsonl. Each appears whole or not at all. Raises UserError for an unreadable line or file, a folder
    that holds something else or another recipe's selection (unless `force`), and a full disk.
    """
    started, used, folder = time.perf_counter(), time.process_time(), Path(recipe.options.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, and the output is a folder; choose another output")
    hashes = _hashes(recipe)
    if own := [path for path in hashes if Path(path).resolve().is_relative_to(folder.resolve())]:
        raise UserError(f"{own[0]}: is in the output folder {folder}, which is written to; choose another output")
    made_of = {"format": FORMAT, "recipe": recipe.plain(), "files": hashes}
    if not force and _is_done(recipe, folder, made_of, name):
        return None
    _forget(folder)
    files.write_json(folder / "selection.json", made_of | {"output_sha256": None})  # ours, and not finished
    tallies = [Tally("read", "read", recipe.options.examples)]
    written = _write(recipe, folder, tallies)
    if changed := [path for path, sha256 in hashes.items() if files.sha256_file(path) != sha256]:
        raise UserError(f"{changed[0]}: changed while it was read; run again when nothing writes to it")
    seconds = time.perf_counter() - started
    report = {
        "recipe_name": name,
        "read": tallies[0].saw,
        "kept": written,
        "seconds": round(seconds, 3),
        "processor_seconds": round(time.process_time() - used, 3),  # less than `seconds` where others compute too
        "records_per_second": round(tallies[0].saw / seconds, 1),
        "peak_mb": None if (peak := runtime.process_bytes("VmHWM")) is None else round(peak / 1e6, 1),
        "steps": [tally.to_json() for tally in tallies],
        "files": hashes,
        "recipe_sha256": files.sha256_json(recipe.plain()),
        "output_sha256": files.sha256_file(folder / "selected.jsonl"),
        "versions": runtime.versions(),
    }
    files.write_json(folder / "report.json", files.jsonable(report))
    files.write_text(folder / "report.md", markdown(report))
    files.write_json(folder / "selection.json", made_of | {"output_sha256": report["output_sha256"]})
    return report


def _hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every file that the recipe reads; a missing one is refused before any work begins."""
    sets = recipe.options.data.sets
    paths = [sets[name].path for name in recipe.sets() if sets[name].path] + recipe.files()
    return {path: files.sha256_file(path) for path in dict.fromkeys(paths)}


def _is_done(recipe: Recipe, folder: Path, made_of: dict, name: str) -> bool:
    """Whether `folder` holds this very selection; refuses one that holds another recipe's, or something else."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / "selection.json").is_file():
        raise UserError(f"{folder}: is there already and no selection; choose another output, or use --force")
    found = files.read_json(folder / "selection.json")
    recorded = found.get("recipe") if isinstance(found, dict) else None
    output = folder / "selected.jsonl"
    if recorded != json.loads(json.dumps(made_of["recipe"])) and output.exists():
        raise UserError(
            f"{folder}: holds the selection of another recipe than {name}{_difference(recorded, made_of['recipe'])}; "
            "choose another output, or use --force to replace it"
        )
    same = {key: found.get(key) for key in made_of} == json.loads(json.dumps(made_of))
    wanted = [output, folder / "report.json"] + [folder / "dropped.jsonl"] * recipe.options.dropped
    complete = all(path.is_file() for path in wanted)
    return same and complete and files.sha256_file(output) == found.get("output_sha256")


def _difference(old, new) -> str:
    """(steps[1].length.min_characters: 1 before, 5 now) for the first difference of two recipes."""

    def first(old, new, path):
        if isinstance(old, dict) and isinstance(new, dict):
            for key in [*new, *(key for key in old if key not in new)]:
                if key not in old or key not in new:
                    return f"{path}{key}"
                if old[key] != new[key]:
                    return first(old[key], new[key], f"{path}{key}.")
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            index = next(index for index in range(len(new)) if old[index] != new[index])
            return first(old[index], new[index], f"{path.rstrip('.')}[{index}].")
        return f"{path.rstrip('.')}: {str(old)[:60]} before, {str(new)[:60]} now"

    return f" ({first(old, new, '')})" if isinstance(old, dict) else ""


def _forget(folder: Path) -> None:
    """A stale selection.json would vouch for files that are about to change; a stale report for old ones."""
    for name in ("report.json", "report.md", "dropped.jsonl"):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be removed ({error.strerror}); choose another output") from error


def _write(recipe: Recipe, folder: Path, tallies: list[Tally]) -> int:
    """Write selected.jsonl (and dropped.jsonl) from the whole chain; returns the number of records kept."""
    with ExitStack() as stack:
        try:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".scratch.", dir=folder)))
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output") from error

        def write(dropped=None) -> int:
            tallies[0].file = dropped
            stream = _chain(recipe, scratch, tallies, dropped)
            kept = 0

            def write_selected(temporary: Path) -> None:
                nonlocal kept
                ids = array("Q")
                with open(temporary, "wb") as file:
                    for item in stream:
                        file.write((item.line or _line_of(item)) + b"\n")
                        ids.append(hash64(item.record.id))
                        kept += 1
                _check_ids(recipe, temporary, ids)

            files.atomic_write(folder / "selected.jsonl", write_selected)
            return kept

        if not recipe.options.dropped:
            return write()
        kept = 0

        def write_both(temporary: Path) -> None:
            nonlocal kept
            with open(temporary, "w", encoding="utf-8") as file:
                kept = write(file)

        files.atomic_write(folder / "dropped.jsonl", write_both)
        return kept


def _check_ids(recipe: Recipe, selected: Path, hashes: array) -> None:
    """Refuse records that share an id, as training would. hashes: of the ids, so that few records need a second look.

    Raises UserError that names the id and, where the sets hold it twice themselves, both places.
    """
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    seen: set[str] = set()
    for _, value in files.read_jsonl(selected) if suspects else ():
        identity = value["id"]
        if identity in seen:
            places = _places(recipe, identity)
            raise UserError(
                f"two selected records have the id {identity!r}"
                + (f": {' and '.join(places)}" if len(places) == 2 else "")
                + "; give the records of all sets in `select` different ids, or drop one with exact_duplicates"
            )
        if hash64(identity) in suspects:
            seen.add(identity)


def _places(recipe: Recipe, identity: str) -> list[str]:
    """Where the sets of a recipe hold an id: two places at most, none for what no file holds. Reads them again, as
    leniently as the first time can have been."""
    sets, seed = recipe.options.data.sets, recipe.options.seed
    read = (read_set(name, sets[name], seed, lambda: None, lambda *_: None) for name in recipe.options.select
            if sets[name].source != "list_programs")  # fmt: skip
    return [item.place for items in read for item in items if item.record.id == identity][:2]


def _line_of(item: Item) -> bytes:
    return json.dumps(record_to_json(item.record), ensure_ascii=False).encode()


def _chain(recipe: Recipe, scratch: Path, tallies: list[Tally], dropped) -> Iterator[Item]:
    """The reader and every step, one behind the other; checks in a row share one loop."""
    stream, checks, shared = _read(recipe, tallies[0]), [], {}
    for planned in recipe.steps:
        tally = Tally(planned.name, planned.where, recipe.options.examples, dropped)
        tallies.append(tally)
        context = Context(planned.where, partial(_records_of, recipe), tally.drop, scratch, shared, tally.notes)
        if planned.step.check:
            checks.append((tally, planned.step.check(planned.options, context)))
            continue
        if checks:
            stream, checks = _checked(stream, checks), []
        stream = _counted(planned, context, stream, tally)
    return _checked(stream, checks) if checks else stream


def _records_of(recipe: Recipe, name: str) -> Iterator[Item]:
    return read_set(name, recipe.options.data.sets[name], recipe.options.seed)


def _read(recipe: Recipe, tally: Tally) -> Iterator[Item]:
    options, sets = recipe.options, recipe.options.data.sets

    def mended() -> None:
        tally.notes[MENDED] = tally.notes.get(MENDED, 0) + 1

    mend = mended if any(planned.name == MENDS for planned in recipe.steps) else None
    refused = tally.refuse if options.unreadable == "drop" else None
    chosen = [(name, sets[name]) for name in options.select]
    total = sum(count_lines(entry.path) if entry.path else entry.count or 0 for _, entry in chosen)
    with runtime.progress_bar(total, "select", " records", unit_scale=True) as bar:
        for name, entry in chosen:
            before = tally.kept + tally.dropped
            prefix = f"{name}/" if len(chosen) > 1 else ""  # two sets of one file must not share their ids
            for item in read_set(name, entry, options.seed, mend, refused, prefix):
                tally.kept += 1
                if not tally.kept % 1000:
                    bar.update(1000)
                yield item
            if tally.kept + tally.dropped == before:
                raise UserError(f"data.sets.{name}: {entry.path} holds no record from skip={entry.skip} on")
        bar.update(tally.kept % 1000)
    tally.saw = tally.kept + tally.dropped


def _checked(stream: Iterator[Item], checks: list[tuple[Tally, Check]]) -> Iterator[Item]:
    saw = 0
    for item in stream:
        saw += 1
        for tally, check in checks:
            if drop := check(item):
                tally.drop(item, drop)
                break
        else:
            yield item
    for tally, _ in checks:
        tally.saw, tally.kept = saw, saw - tally.dropped
        saw = tally.kept


def _counted(planned: PlannedStep, context: Context, stream: Iterator[Item], tally: Tally) -> Iterator[Item]:
    def entering() -> Iterator[Item]:
        for item in stream:
            tally.saw += 1
            yield item

    for item in planned.step.stream(planned.options, context, entering()):
        tally.kept += 1
        yield item

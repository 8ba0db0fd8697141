"""Runs a recipe: sets -> steps -> selected.jsonl and a report; skipped when nothing has changed."""

import json
import tempfile
import time
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.data.options import FileSet
from mindspore_impl.data.selection.reader import count_lines, read_set
from mindspore_impl.data.selection.recipe import Recipe
from mindspore_impl.data.selection.report import Tally, markdown
from mindspore_impl.data.selection.stream import Context, Item
from mindspore_impl.data.selection.words import hash64
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import record_to_json

FORMAT = 3  # version of the steps: raised when the same recipe would select other records
MENDS = "broken_unicode"  # with this step, the reader repairs lone surrogates instead of refusing the line
MENDED = "lines in which a lone surrogate became U+FFFD"


def run(recipe: Recipe, name: str, force: bool = False) -> dict | None:
    """Select into the folder `recipe.options.output`; returns the report, or None when nothing has changed.

    The folder gets selected.jsonl, report.json, report.md, selection.json (recipe and hashes of the inputs) and, on
    request, dropped.jsonl, each written atomically. Raises UserError for an unreadable line or file, a folder with
    other content or another recipe's selection (unless `force`), and a full disk.
    """
    started, used, folder = time.perf_counter(), time.process_time(), Path(recipe.options.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, but the output is a folder; choose another output")
    hashes = _hashes(recipe)
    if own := [path for path in hashes if Path(path).resolve().is_relative_to(folder.resolve())]:
        raise UserError(f"{own[0]}: is in the output folder {folder}; choose another output")
    made_of = {"format": FORMAT, "recipe": recipe.plain(), "files": hashes}
    if not force and _is_done(recipe, folder, made_of, name):
        return None
    for path in [folder / name for name in ("report.json", "report.md", "dropped.jsonl")]:  # of an earlier selection
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be removed ({error.strerror}); choose another output") from error
    files.write_json(folder / "selection.json", made_of | {"output_sha256": None})  # unfinished
    tallies = [Tally("read", "read", recipe.options.examples)]
    _write(recipe, folder, tallies)
    if changed := [path for path, sha256 in hashes.items() if files.sha256_file(path) != sha256]:
        raise UserError(f"{changed[0]}: changed during the selection; run again when nothing writes to it")
    seconds = time.perf_counter() - started
    report = {
        "recipe_name": name,
        "read": tallies[0].saw,
        "kept": tallies[-1].kept,
        "seconds": round(seconds, 3),
        "processor_seconds": round(time.process_time() - used, 3),  # less than `seconds` on a shared machine
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
    """SHA-256 of every file that the recipe reads. Raises UserError for a missing one."""
    sets = recipe.options.data.sets
    paths = [sets[name].path for name in recipe.sets() if isinstance(sets[name], FileSet)] + recipe.files()
    return {path: files.sha256_file(path) for path in dict.fromkeys(paths)}


def _is_done(recipe: Recipe, folder: Path, made_of: dict, name: str) -> bool:
    """Whether `folder` holds the finished selection. Raises UserError for another recipe's, or other files."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / "selection.json").is_file():
        raise UserError(f"{folder}: exists and is not a selection; choose another output, or use --force")
    found = files.read_json(folder / "selection.json")
    recorded = found.get("recipe") if isinstance(found, dict) else None
    output = folder / "selected.jsonl"
    if recorded != json.loads(json.dumps(made_of["recipe"])) and output.exists():
        other = f"another recipe than {name}{_difference(recorded, made_of['recipe'])}"
        raise UserError(f"{folder}: holds the selection of {other}; choose another output, or use --force")
    same = {key: found.get(key) for key in made_of} == json.loads(json.dumps(made_of))
    wanted = [output, folder / "report.json"] + [folder / "dropped.jsonl"] * recipe.options.dropped
    complete = all(path.is_file() for path in wanted)
    return same and complete and files.sha256_file(output) == found.get("output_sha256")


def _difference(old, new) -> str:
    """The first difference of two recipes: (steps[1].length.min_characters: 1 before, 5 now)."""
    old, new = _flat(old), _flat(new)
    for key in [*new, *old]:
        if old.get(key) != new.get(key):
            return f" ({key}: {str(old.get(key))[:60]} before, {str(new.get(key))[:60]} now)"
    return ""


def _flat(value, path: str = "") -> dict[str, object]:
    """The leaves of nested dictionaries and lists by their paths."""
    if not isinstance(value, dict | list) or not value:
        return {path: value}
    if isinstance(value, list):
        parts = {f"{path}[{index}]": entry for index, entry in enumerate(value)}
    else:
        parts = {f"{path}.{key}".lstrip("."): entry for key, entry in value.items()}
    return {name: leaf for part, entry in parts.items() for name, leaf in _flat(entry, part).items()}


def _write(recipe: Recipe, folder: Path, tallies: list[Tally]) -> None:
    """Write selected.jsonl (and dropped.jsonl) through all steps; a tally is added for each."""

    def write_selected(temporary: Path) -> None:
        ids = array("Q")
        with open(temporary, "wb") as file, tempfile.TemporaryDirectory(prefix=".scratch.", dir=folder) as scratch:
            for item in _chain(recipe, Path(scratch), tallies):
                line = item.line or json.dumps(record_to_json(item.record), ensure_ascii=False).encode()
                file.write(line + b"\n")
                ids.append(hash64(item.record.id))
        _check_ids(recipe, temporary, ids)

    def write_both(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            tallies[0].file = file
            files.atomic_write(folder / "selected.jsonl", write_selected)

    if recipe.options.dropped:
        files.atomic_write(folder / "dropped.jsonl", write_both)
    else:
        files.atomic_write(folder / "selected.jsonl", write_selected)
    for before, tally in pairwise(tallies):
        tally.saw = before.kept


def _check_ids(recipe: Recipe, selected: Path, hashes: array) -> None:
    """Refuse selected records with equal ids, as training does. hashes: of the ids, so that few are read again.

    Raises UserError naming the id and, where the sets hold it twice, both places.
    """
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    seen: set[str] = set()
    for _, value in files.read_jsonl(selected) if suspects else ():
        identity = value["id"]
        if identity in seen:
            places = _places(recipe, identity)
            fault = f"two selected records have the id {identity!r}" + f": {' and '.join(places)}" * (len(places) == 2)
            raise UserError(f"{fault}; give records of `select` different ids, or drop one with exact_duplicates")
        if hash64(identity) in suspects:
            seen.add(identity)


def _places(recipe: Recipe, identity: str) -> list[str]:
    """At most two places where the sets of a recipe hold an id. Reads the sets again, leniently."""
    sets, seed = recipe.options.data.sets, recipe.options.seed
    read = (read_set(name, sets[name], seed, lambda: None, lambda *_: None) for name in recipe.options.select
            if isinstance(sets[name], FileSet))  # fmt: skip
    return [item.place for items in read for item in items if item.record.id == identity][:2]


def _chain(recipe: Recipe, scratch: Path, tallies: list[Tally]) -> Iterator[Item]:
    stream, shared = _read(recipe, tallies[0]), {}

    def records_of(name: str) -> Iterator[Item]:
        return read_set(name, recipe.options.data.sets[name], recipe.options.seed)

    for planned in recipe.steps:
        tally = Tally(planned.name, planned.where, recipe.options.examples, tallies[0].file)
        tallies.append(tally)
        context = Context(planned.where, records_of, tally.drop, scratch, shared, tally.notes)
        stream = _counted(planned.run(planned.options, context, stream), tally)
    return stream


def _counted(stream: Iterator[Item], tally: Tally) -> Iterator[Item]:
    for item in stream:
        tally.kept += 1
        yield item


def _read(recipe: Recipe, tally: Tally) -> Iterator[Item]:
    options, sets = recipe.options, recipe.options.data.sets

    def mended() -> None:
        tally.notes[MENDED] = tally.notes.get(MENDED, 0) + 1

    mend = mended if any(planned.name == MENDS for planned in recipe.steps) else None
    refused = tally.drop if options.unreadable == "drop" else None
    chosen = [(name, sets[name]) for name in options.select]
    total = sum(count_lines(entry.path) if isinstance(entry, FileSet) else entry.count or 0 for _, entry in chosen)
    with runtime.progress_bar(total, "select", " records", unit_scale=True) as bar:
        for name, entry in chosen:
            kept, lost = tally.kept, tally.dropped
            for item in read_set(name, entry, options.seed, mend, refused):
                tally.kept += 1
                if not tally.kept % 1000:
                    bar.update(1000)
                yield item
            kept, lost, where = tally.kept - kept, tally.dropped - lost, getattr(entry, "path", entry.source)
            if not kept + lost:
                raise UserError(f"data.sets.{name}: {where} holds no record from skip={entry.skip} on")
            if lost > kept:
                fault = f"{lost} of {kept + lost} entries of {where} are no record of source: {entry.source}"
                advice = f"choose its source, or mend what --check {where} --source {entry.source} finds"
                raise UserError(f"data.sets.{name}: {fault}; {advice}")
        bar.update(tally.kept % 1000)
    tally.saw = tally.kept + tally.dropped

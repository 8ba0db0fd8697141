"""What a benchmark consists of (Item, Task), and readers of the published file formats."""

import csv
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.sandbox.run import Program


@dataclass(frozen=True)
class Item:
    """One question.

    header: text before `prompt`, shared by many items: the instruction and the worked examples ("shots").
    options: continuations of header + prompt, of which the most probable is the model's answer; empty: a completion.
    answer: index of the right option, or what the task's `score` compares with. group: a subject or level.
    """

    id: str
    prompt: str
    header: str = ""
    options: tuple[str, ...] = ()
    answer: Any = None
    group: str = ""


@dataclass(frozen=True)
class Task:
    """A benchmark.

    read(path, shots) returns the items; raises UserError that names file and line.
    score(item, completion) returns {metric: 0.0 to 1.0}; program(item, completion) returns a program that must pass its
    tests ("pass@1", `code.py`). With neither, items have options, compared by log-likelihood ("acc") and by
    log-likelihood per character ("acc_norm").
    metrics: the first is quoted. stop: strings that end a completion of a plain prompt. form: the prompt's by default.
    """

    read: Callable[[Path, int], list[Item]]
    score: Callable[[Item, str], dict[str, float]] | None = None
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    shots: int = 0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 512
    form: Literal["chat", "plain"] = "chat"
    program: Callable[[Item, str], Program] | None = None

    @property
    def chooses(self) -> bool:
        """Whether this is multiple choice."""
        return self.score is None and self.program is None


def rows(path: Path, columns: tuple[str, ...], named: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) of a CSV file. Raises UserError that names file and line.

    named: the first row names the columns, of which `columns` must be there; else rows hold `columns` in this order.
    """
    last = 0
    with files.reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = [cell.strip() for cell in next(reader, [])] if named else list(columns)
            if missing := [name for name in columns if name not in names]:
                raise UserError(f"{path}:1: no column {missing[0]!r}; found {', '.join(names)}")
            last = reader.line_num
            for cells in reader:
                line, last = last + 1, reader.line_num  # a quoted cell may contain line breaks
                if cells and len(cells) != len(names):
                    raise UserError(f"{path}:{line}: {len(cells)} columns where {len(names)} are needed")
                if cells:
                    yield line, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}:{last + 1}: not valid CSV ({error})") from error


def field(row: dict, name: str, kind: type | tuple, where: str) -> Any:
    """Return row[name], checked to be of `kind`. Raises UserError that names place and field."""
    if name not in row:
        raise UserError(f"{where}: the field {name!r} is missing; this task needs it")
    if not isinstance(row[name], kind):
        wanted = " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
        raise UserError(f"{where}: {name} must be {wanted}, found {type(row[name]).__name__}")
    return row[name]


def strings(row: dict, name: str, where: str) -> list[str]:
    """Return row[name], checked to be a list of strings. Raises UserError that names place and field."""
    values = field(row, name, list, where)
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: {name} must be a list of strings")
    return values


def objects(path: Path, name: str = "", shots: int = 0) -> Iterator[tuple[str, dict]]:
    """Yield ("file:line", object) of JSON lines: `path`, or its file `name`. Raises UserError, also for `shots`."""
    if shots:
        raise UserError(f"{path}: the task has no worked examples; set shots to 0")
    path = path / name if path.is_dir() else path
    for line, row in files.read_jsonl(path):
        yield f"{path}:{line}", row


Questions = Callable[[Path], Iterator[tuple[Item, str]]]  # of a file: items, and their answers as a shot shows them


def with_shots(questions: Questions, names: tuple[str, str], path: Path, shots: int) -> list[Item]:
    """The items of the first of the files `names`, after `shots` items of the second as worked examples.

    path: the folder of both, or the file of questions. Raises UserError when there are fewer, or as `questions`.
    """
    (test, train), folder, header = names, path.is_dir(), ""
    if shots and not (folder and (path / train).is_file()):
        raise UserError(f"{path}: {shots} shots need a folder with {train} and {test}; or set shots to 0")
    if shots:
        header = first_shots((item.prompt + answer for item, answer in questions(path / train)), shots, path / train)
    return [replace(item, header=header) for item, _ in questions(path / test if folder else path)]


def first_shots(shown: Iterator[str], shots: int, where: Path) -> str:
    """The first `shots` of the worked examples `shown` as text. Raises UserError when there are fewer."""
    texts = [f"{text}\n\n" for text in itertools.islice(shown, shots)]
    if len(texts) < shots:
        raise UserError(f"{where}: holds {len(texts)} worked examples, {shots} shots need more; lower shots")
    return "".join(texts)


def plain(completion: str, stop: tuple[str, ...]) -> str:
    """Cut `completion` at the first stop string."""
    return completion[: min((completion.find(text) for text in stop if text and text in completion), default=None)]

"""The form of a benchmark: its items, how they are scored, and the readers of the published file forms."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.sandbox import Program


@dataclass(frozen=True)
class Item:
    """One question.

    header: what stands before `prompt`: the instruction and the worked examples ("shots"), equal for many items.
    options: continuations of header + prompt, of which the most probable one is the model's answer; none: it writes.
    answer: the index of the right option, or what the task's `score` compares with. group: a subject or level.
    """

    id: str
    prompt: str
    header: str = ""
    options: tuple[str, ...] = ()
    answer: Any = None
    group: str = ""


@dataclass(frozen=True)
class Task:
    """A benchmark. read(path, shots) -> items, raising UserError that names file and line.

    score(item, completion) -> {metric: 0.0 to 1.0}; program(item, completion) -> what must pass its tests instead
    ("pass@1", `code.py`). With neither, items have options, compared by log-likelihood ("acc", and "acc_norm" by
    log-likelihood a character). `metrics` begins with the one that is quoted. `stop`: strings that end a
    completion where the prompt is plain text, not a chat turn. form: how completions are asked for.
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
        """Whether the answer is one of given options."""
        return self.score is None and self.program is None


def rows(path: Path, columns: tuple[str, ...], named: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, row) of a CSV file.

    named: the first row names the columns (others are left out); else the rows hold `columns` in this order. Raises
    UserError that names file and line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _rows(csv.reader(file, strict=True), path, columns, named)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error


def _rows(reader, path: Path, columns: tuple[str, ...], named: bool) -> Iterator[tuple[int, dict[str, str]]]:
    names, first, last = list(columns), True, 1
    try:
        for cells in reader:
            line, last = last, reader.line_num + 1  # a quoted cell may hold line breaks
            if named and first:
                names = [cell.strip() for cell in cells]
                if missing := [name for name in columns if name not in names]:
                    raise UserError(f"{path}:{line}: no column {missing[0]!r}; found {', '.join(names)}")
            elif cells:
                if len(cells) != len(names):
                    raise UserError(f"{path}:{line}: {len(cells)} columns where {len(names)} are needed")
                yield line, dict(zip(names, cells, strict=True))
            first = False
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error


def field(row: dict, name: str, kind: type | tuple, where: str) -> Any:
    """row[name], which must be of `kind`. Raises UserError that names place and field."""
    if name not in row:
        raise UserError(f"{where}: the field {name!r} is missing; this task needs it")
    if not isinstance(row[name], kind):
        wanted = " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
        raise UserError(f"{where}: {name} must be {wanted}, found {type(row[name]).__name__}")
    return row[name]


def objects(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield ("file:line", object) of a JSON lines file."""
    for line, row in files.read_jsonl(path):
        yield f"{path}:{line}", row


def question_files(path: Path, test: str, train: str, shots: int) -> tuple[Path, Path | None]:
    """The file of questions and, where `shots` need one, that of worked examples.

    path: the folder of both, or the file of questions alone. Raises UserError when shots have no file.
    """
    folder = path.is_dir()
    if shots and not (folder and (path / train).is_file()):
        raise UserError(f"{path}: {shots} shots need a folder with {train} and {test}; or set shots to 0")
    return (path / test if folder else path), (path / train if shots else None)


def first_shots(shown: Iterator[tuple[str, str]], shots: int, where: Path) -> str:
    """The first `shots` worked examples, (prompt, answer) each, as text. Raises UserError when there are fewer."""
    texts = [f"{prompt}{answer}\n\n" for prompt, answer in (pair for _, pair in zip(range(shots), shown, strict=False))]
    if len(texts) < shots:
        raise UserError(f"{where}: holds {len(texts)} worked examples, {shots} shots need more; lower shots")
    return "".join(texts)


def plain(completion: str, stop: tuple[str, ...]) -> str:
    """`completion` up to the first of the strings `stop`."""
    ends = [completion.find(text) for text in stop if text and text in completion]
    return completion[: min(ends)] if ends else completion

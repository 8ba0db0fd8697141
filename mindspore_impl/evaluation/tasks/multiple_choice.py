"""Multiple choice by subject with one CSV file each: shared by MMLU, CMMLU and C-Eval."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, first_shots, rows

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Layout:
    """File layout and wording of a data set.

    question, answer: column names (the options are A to D). named: files begin with a row of names. suffix: a file is
    named subject + suffix.format(split=...) + ".csv". split: the folder that is measured. instruction(subject name)
    returns the first line. asked: the end of a question.
    """

    question: str
    answer: str
    named: bool
    suffix: str
    split: str
    instruction: Callable[[str], str]
    asked: str


def read(layout: Layout, path: Path, shots: int) -> list[Item]:
    """The questions of every subject, each after the first `shots` questions of the subject's dev file.

    `subject_mapping.json` beside the folders, {subject: [English name, Chinese name, ...]} as C-Eval publishes it,
    gives the Chinese names of subjects. Raises UserError that names file and line.
    """
    folder = path / layout.split
    ending = layout.suffix.format(split=layout.split) + ".csv"
    found = sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []
    if not found:
        raise UserError(
            f"{path}: no file {layout.split}/*{ending}; give the folder that contains dev/ and {layout.split}/"
        )
    mapping = path / "subject_mapping.json"
    names = files.read_json(mapping) if mapping.is_file() else {}
    if not isinstance(names, dict):
        raise UserError(f"{mapping}: expected an object of subjects, found {type(names).__name__}")
    items = []
    for file in found:
        subject = file.name.removesuffix(ending)
        header = layout.instruction(_name(names, subject, mapping)) + "\n\n" + _shots(layout, path, subject, shots)
        for number, (question, right) in enumerate(_questions(layout, file)):
            options = tuple(f" {letter}" for letter in LETTERS)
            items.append(Item(f"{subject}/{number}", question, header, options, LETTERS.index(right), subject))
    return items


def _name(names: dict, subject: str, mapping: Path) -> str:
    """The subject's Chinese name where there is a mapping, else its file name with spaces."""
    if not names:
        return subject.replace("_", " ")
    entry = names.get(subject)
    if not (isinstance(entry, list) and len(entry) > 1 and all(isinstance(word, str) for word in entry)):
        raise UserError(f"{mapping}: {subject!r} needs a list: English name, Chinese name")
    return entry[1]


def _shots(layout: Layout, path: Path, subject: str, shots: int) -> str:
    if not shots:
        return ""
    file = path / "dev" / f"{subject}{layout.suffix.format(split='dev')}.csv"
    return first_shots(((question, f" {right}") for question, right in _questions(layout, file)), shots, file)


def _questions(layout: Layout, file: Path) -> Iterator[tuple[str, str]]:
    """Yield (prompt, letter of the right answer) of each row."""
    for line, row in rows(file, (layout.question, *LETTERS, layout.answer), layout.named):
        right = row[layout.answer].strip()
        if right not in LETTERS:
            raise UserError(f"{file}:{line}: the answer is {right!r}; it must be one of A, B, C, D")
        options = "\n".join(f"{letter}. {row[letter]}" for letter in LETTERS)
        yield f"{row[layout.question].strip()}\n{options}\n{layout.asked}", right

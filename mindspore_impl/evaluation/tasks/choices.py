"""Multiple choice by subject, one CSV file each: what MMLU, CMMLU and C-Eval share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.form import Item, first_shots, rows

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Form:
    """How a data set's files are laid out and asked.

    question, answer: their column names (the options are A to D); named: files begin with a row of names; suffix: a
    file's name is subject + suffix.format(split=...) + ".csv"; split: the folder that is measured; instruction(name)
    -> the first line, `name` being the subject's, or "" where it is not known; asked: what ends a question.
    """

    question: str
    answer: str
    named: bool
    suffix: str
    split: str
    instruction: Callable[[str], str]
    asked: str


def read(form: Form, path: Path, shots: int) -> list[Item]:
    """The questions of every subject, each behind the first `shots` of the subject's dev file.

    `subject_mapping.json` beside the folders, {subject: [English name, Chinese name, ...]} as C-Eval publishes it,
    gives Chinese names for instructions. Raises UserError that names file and line.
    """
    folder = path / form.split
    ending = form.suffix.format(split=form.split) + ".csv"
    found = sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []
    if not found:
        raise UserError(f"{path}: no {form.split}/*{ending} there; give the folder that holds dev/ and {form.split}/")
    mapping = path / "subject_mapping.json"
    names = files.read_json(mapping) if mapping.is_file() else {}
    if not isinstance(names, dict):
        raise UserError(f"{mapping}: expected an object of subjects, found {type(names).__name__}")
    items = []
    for file in found:
        subject = file.name.removesuffix(ending)
        header = form.instruction(_name(names, subject, mapping)) + "\n\n" + _shots(form, path, subject, shots)
        for number, (question, right) in enumerate(_questions(form, file)):
            options = tuple(f" {letter}" for letter in LETTERS)
            items.append(Item(f"{subject}/{number}", question, header, options, LETTERS.index(right), subject))
    return items


def _name(names: dict, subject: str, mapping: Path) -> str:
    """The Chinese name where a mapping is there, else the file's own name if that is what instructions use."""
    if not names:
        return subject.replace("_", " ")
    entry = names.get(subject)
    if not (isinstance(entry, list) and len(entry) > 1 and all(isinstance(word, str) for word in entry)):
        raise UserError(f"{mapping}: {subject!r} needs a list: English name, Chinese name")
    return entry[1]


def _shots(form: Form, path: Path, subject: str, shots: int) -> str:
    if not shots:
        return ""
    file = path / "dev" / f"{subject}{form.suffix.format(split='dev')}.csv"
    return first_shots(((question, f" {right}") for question, right in _questions(form, file)), shots, file)


def _questions(form: Form, file: Path) -> Iterator[tuple[str, str]]:
    """(question as it is asked, letter of the right answer) of each row."""
    for line, row in rows(file, (form.question, *LETTERS, form.answer), form.named):
        right = row[form.answer].strip()
        if right not in LETTERS:
            raise UserError(f"{file}:{line}: the answer is {right!r}; it must be one of A, B, C, D")
        options = "\n".join(f"{letter}. {row[letter]}" for letter in LETTERS)
        yield f"{row[form.question].strip()}\n{options}\n{form.asked}", right

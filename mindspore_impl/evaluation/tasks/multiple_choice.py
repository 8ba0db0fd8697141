"""MMLU, CMMLU and C-Eval: multiple choice by subject, one CSV file each.

Files: the published folder with dev/ (worked examples) and the folder that is measured, one file a subject.

- MMLU (57 subjects, English; Hendrycks et al., arXiv 2009.03300): dev/SUBJECT_dev.csv, test/SUBJECT_test.csv: question,
  A, B, C, D, answer, without a row of names. The text is lm-evaluation-harness's (task mmlu).
- CMMLU (67 subjects, Chinese; Li et al., arXiv 2306.09212): dev/SUBJECT.csv, test/SUBJECT.csv: an index, Question, A,
  B, C, D, Answer, the first row naming them.
- C-Eval (52 subjects, Chinese; Huang et al., arXiv 2305.08322): dev/SUBJECT_dev.csv, val/SUBJECT_val.csv: id, question,
  A, B, C, D, answer (and explanation), the first row naming them; the answers of `test` are not published.

Prompt: an instruction that names the subject, the first 5 of dev as shots, the question with its options, "Answer:" or
"答案："; the letter of largest log-likelihood is the answer. Metric: acc over all questions (and per subject).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, Task, first_shots, rows
from mindspore_impl.text.records import as_object

LETTERS = ("A", "B", "C", "D")
OPTIONS = tuple(f" {letter}" for letter in LETTERS)


@dataclass(frozen=True)
class Layout:
    """File layout and wording of a data set. A file is named subject + ending.format(split).

    question, answer: column names (the options are A to D). named: files begin with a row of names. split: the folder
    that is measured. instruction: the first line. asked: the end of a question.
    """

    question: str
    answer: str
    named: bool
    ending: str
    split: str
    instruction: str
    asked: str


def read(layout: Layout, path: Path, shots: int) -> list[Item]:
    """The questions of every subject, each after the first `shots` questions of the subject's dev file.

    `subject_mapping.json` beside the folders, {subject: [English name, Chinese name, ...]} as C-Eval publishes it,
    gives the Chinese names of subjects. Raises UserError that names file and line.
    """
    ending = layout.ending.format(layout.split)
    found = sorted((path / layout.split).glob(f"*{ending}"))
    if not found:
        raise UserError(f"{path}: no file {layout.split}/*{ending}; give the folder of dev/ and {layout.split}/")
    mapping = path / "subject_mapping.json"
    names = as_object(files.read_json(mapping), f"{mapping}") if mapping.is_file() else {}
    items = []
    for file in found:
        subject = file.name.removesuffix(ending)
        dev = path / "dev" / f"{subject}{layout.ending.format('dev')}"
        shown = (f"{item.prompt} {LETTERS[item.answer]}" for item in _questions(layout, dev, subject))
        header = layout.instruction.format(_name(names, subject, mapping)) + "\n\n" + first_shots(shown, shots, dev)
        items += [replace(item, header=header) for item in _questions(layout, file, subject)]
    return items


def _name(names: dict, subject: str, mapping: Path) -> str:
    """The subject's Chinese name where there is a mapping, else its file name with spaces."""
    if not names:
        return subject.replace("_", " ")
    entry = names.get(subject)
    if not (isinstance(entry, list) and len(entry) > 1 and all(isinstance(word, str) for word in entry)):
        raise UserError(f"{mapping}: {subject!r} needs a list: English name, Chinese name")
    return entry[1]


def _questions(layout: Layout, file: Path, subject: str) -> Iterator[Item]:
    for number, (line, row) in enumerate(rows(file, (layout.question, *LETTERS, layout.answer), layout.named)):
        right = row[layout.answer].strip()
        if right not in LETTERS:
            raise UserError(f"{file}:{line}: the answer is {right!r}; it must be one of A, B, C, D")
        options = "\n".join(f"{letter}. {row[letter]}" for letter in LETTERS)
        prompt = f"{row[layout.question].strip()}\n{options}\n{layout.asked}"
        yield Item(f"{subject}/{number}", prompt, options=OPTIONS, answer=LETTERS.index(right), group=subject)


_MMLU = "The following are multiple choice questions (with answers) about {}."
_CMMLU = "以下是关于{}的单项选择题，请直接给出正确答案的选项。"
_CEVAL = "以下是中国关于{}的单项选择题，请选出其中的正确答案。"
LAYOUTS = {
    "mmlu": Layout("question", "answer", False, "_{}.csv", "test", _MMLU, "Answer:"),
    "cmmlu": Layout("Question", "Answer", True, ".csv", "test", _CMMLU, "答案："),
    "ceval": Layout("question", "answer", True, "_{}.csv", "val", _CEVAL, "答案："),
}
TASKS = {name: Task(partial(read, layout), shots=5) for name, layout in LAYOUTS.items()}

"""CLUEWSC2020: whether a pronoun means a noun, Chinese (Xu et al., CLUE, arXiv 2004.05986).

Files: `dev.json` (`train.json` for shots) of the published folder, JSON lines despite the name: {"target":
{"span1_text", "span2_text", ...}, "label": "true" | "false", "text"}; `test.json` has no labels. Prompt: the text, then
whether span 2 (a pronoun) refers to span 1; the answers 是 and 否 are compared by log-likelihood. 0 shots. Metric: acc.
"""

from collections.abc import Iterator
from pathlib import Path

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, Task, field, first_shots, objects, question_files

OPTIONS = ("是", "否")


def read(path: Path, shots: int) -> list[Item]:
    """The items of a folder or file. Raises UserError that names file and line."""
    test, train = question_files(path, "dev.json", "train.json", shots)
    shown = ((prompt, OPTIONS[right]) for prompt, right in _questions(train)) if train else iter(())
    header = first_shots(shown, shots, train or path)
    return [Item(str(i), prompt, header, OPTIONS, right) for i, (prompt, right) in enumerate(_questions(test))]


def _questions(file: Path) -> Iterator[tuple[str, int]]:
    for where, row in objects(file):
        target, label = field(row, "target", dict, where), field(row, "label", (str, bool), where)
        noun, pronoun = field(target, "span1_text", str, where), field(target, "span2_text", str, where)
        text = field(row, "text", str, where)
        if str(label).lower() not in ("true", "false"):
            raise UserError(f"{where}: label is {label!r}; it must be true or false")
        right = 0 if str(label).lower() == "true" else 1
        yield f"{text}\n问：上文中的“{pronoun}”指的是“{noun}”吗？请回答是或否。\n答：", right


TASK = Task(read)

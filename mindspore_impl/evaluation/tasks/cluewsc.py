"""CLUEWSC2020: whether a pronoun means a noun, Chinese (Xu et al., CLUE, arXiv 2004.05986).

Files: `dev.json` (`train.json` for shots) of the published folder, JSON lines despite the name: {"target":
{"span1_text", "span2_text", ...}, "label": "true" | "false", "text"}; `test.json` has no labels. Prompt: the text, then
whether span 2 (a pronoun) refers to span 1; the answers 是 and 否 are compared by log-likelihood. 0 shots. Metric: acc.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, Task, field, objects, with_shots

OPTIONS = ("是", "否")


def questions(file: Path) -> Iterator[tuple[Item, str]]:
    """The items of a file and their answers. Raises UserError that names file and line."""
    for number, (where, row) in enumerate(objects(file)):
        target, label = field(row, "target", dict, where), field(row, "label", (str, bool), where)
        noun, pronoun = field(target, "span1_text", str, where), field(target, "span2_text", str, where)
        text = field(row, "text", str, where)
        if str(label).lower() not in ("true", "false"):
            raise UserError(f"{where}: label is {label!r}; it must be true or false")
        right = 0 if str(label).lower() == "true" else 1
        prompt = f"{text}\n问：上文中的“{pronoun}”指的是“{noun}”吗？请回答是或否。\n答："
        yield Item(str(number), prompt, options=OPTIONS, answer=right), OPTIONS[right]


TASK = Task(partial(with_shots, questions, ("dev.json", "train.json")))

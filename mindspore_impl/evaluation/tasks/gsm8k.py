r"""GSM8K: grade-school mathematics (Cobbe et al., arXiv 2110.14168).

Files: the published `test.jsonl`, and `train.jsonl` beside it for shots: {"question", "answer": "... #### 72"}. Prompt:
the first 5 of train as "Question: ...\nAnswer: ...", then the question. Metrics: exact_match, the last number of
the completion (after #### where there is one) equals the right one (`data/answers.py`); strict_match and
flexible_extract are those of lm-evaluation-harness, which compares texts.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mindspore_impl.data.answers import final_number
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, Task, field, objects, with_shots

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def questions(file: Path) -> Iterator[tuple[Item, str]]:
    """The items of a file and their answers. Raises UserError that names file and line."""
    for number, (where, row) in enumerate(objects(file)):
        answer = field(row, "answer", str, where)
        if "####" not in answer or final_number(answer) is None:
            raise UserError(f"{where}: the answer has no number after ####")
        yield Item(str(number), f"Question: {field(row, 'question', str, where)}\nAnswer:", answer=answer), f" {answer}"


def score(item: Item, completion: str) -> dict[str, float]:
    """exact_match, strict_match and flexible_extract of one completion."""
    right = final_number(item.answer)
    strict, flexible = _STRICT.search(completion), _FLEXIBLE.findall(completion)
    return {
        "exact_match": float(final_number(completion) == right),
        "strict_match": float(strict is not None and _text(strict[1]) == _text(item.answer)),
        "flexible_extract": float(bool(flexible) and _text(flexible[-1]) == _text(item.answer)),
    }


def _text(answer: str) -> str:
    """Normalize as the harness does: text after ####, without commas, dollar signs and a final full stop."""
    return answer.rsplit("#### ", 1)[-1].replace(",", "").replace("$", "").removesuffix(".").lower()


METRICS = ("exact_match", "strict_match", "flexible_extract")
READ = partial(with_shots, questions, ("test.jsonl", "train.jsonl"))
TASK = Task(READ, score, METRICS, shots=5, stop=("Question:", "</s>", "<|im_end|>"))

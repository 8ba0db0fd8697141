r"""MATH-500: competition mathematics (Lightman et al., arXiv 2305.20050; Hendrycks et al., arXiv 2103.03874).

Files: the published `test.jsonl` (or its folder): {"problem", "solution", "answer", "subject", "level", "unique_id"}.
Prompt: the problem and a request for \boxed{}; 0 shots, since the set has no training part. Metric: accuracy, the last
\boxed{...} equals the answer as a value (`equivalence.py`); without a box the last line counts.
"""

from pathlib import Path

from mindspore_impl.evaluation.tasks.base import Item, Task, field, objects
from mindspore_impl.evaluation.tasks.equivalence import equivalent, final_answer

REQUEST = "\n\nReason step by step, and put your final answer within \\boxed{}."


def read(path: Path, shots: int) -> list[Item]:
    """The items of a file or folder. Raises UserError that names file and line."""
    items = []
    for where, row in objects(path, "test.jsonl", shots):
        name = str(row.get("unique_id", len(items)))
        answer, subject = field(row, "answer", str, where), str(row.get("subject", ""))
        items.append(Item(name, field(row, "problem", str, where) + REQUEST, answer=answer, group=subject))
    return items


def score(item: Item, completion: str) -> dict[str, float]:
    """accuracy of one completion."""
    lines = completion.strip().splitlines() or [""]
    found = final_answer(completion)
    return {"accuracy": float(equivalent(lines[-1] if found is None else found, item.answer))}


TASK = Task(read, score, ("accuracy",), max_new_tokens=1024)

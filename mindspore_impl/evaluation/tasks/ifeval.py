"""IF-Eval: instructions that a program can verify (Zhou et al., arXiv 2311.07911).

Files: the published `input_data.jsonl` (or its folder): {"key", "prompt", "instruction_id_list", "kwargs"}. The prompt
is used as it is; 0 shots. Metrics, all strict: prompt_level (every instruction followed; quoted) and instruction_level
(the share of a prompt's instructions that are followed, averaged over prompts).

All 25 published instructions are checked (`instructions.py`), languages by `langdetect` as in the published checker, or
else by script and common words; sentences are split by a simple rule, there by nltk's trained splitter.
"""

from pathlib import Path

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks import instructions
from mindspore_impl.evaluation.tasks.base import Item, Task, field, objects, strings


def read(path: Path, shots: int) -> list[Item]:
    """The items; `answer` is a list of (instruction, arguments). Raises UserError that names file and line."""
    return [_item(where, row) for where, row in objects(path, "input_data.jsonl", shots)]


def _item(where: str, row: dict) -> Item:
    names, arguments = strings(row, "instruction_id_list", where), field(row, "kwargs", list, where)
    if len(names) != len(arguments) or not names:
        raise UserError(f"{where}: instruction_id_list and kwargs must be of one length, at least 1")
    if not all(kwargs is None or isinstance(kwargs, dict) for kwargs in arguments):
        raise UserError(f"{where}: kwargs must be a list of objects")
    given = [{key: value for key, value in (kwargs or {}).items() if value is not None} for kwargs in arguments]
    asked = list(zip(names, given, strict=True))
    for name, kwargs in asked:
        instructions.check_arguments(name, kwargs, where)
    return Item(str(row.get("key", where)), field(row, "prompt", str, where), answer=asked)


def score(item: Item, completion: str) -> dict[str, float]:
    """prompt_level and instruction_level of one completion; an empty one follows nothing."""
    given = completion.strip()
    followed = [bool(given) and instructions.follows(*asked, completion) for asked in item.answer]
    return {"prompt_level": float(all(followed)), "instruction_level": sum(followed) / len(followed)}


TASK = Task(read, score, ("prompt_level", "instruction_level"), max_new_tokens=1024)

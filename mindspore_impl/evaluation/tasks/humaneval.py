"""HumanEval: functions from their docstrings (Chen et al., arXiv 2107.03374).

File: the published `HumanEval.jsonl`, or its folder: {"task_id", "prompt", "entry_point", "canonical_solution",
"test"}. Prompt: the beginning of the function, no shots; a completion ends at the paper's stop strings. `CHAT` is the
same as a request to a chat model. Metric: pass@1, by running the tests in the sandbox.
"""

import ast
from pathlib import Path

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, Task, field, objects
from mindspore_impl.evaluation.tasks.code import METRICS, Tests, parsed, program

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
INSTRUCTION = "Complete the following Python function. Answer with the whole function in one ```python block.\n\n"


def read(path: Path, shots: int = 0) -> list[Item]:
    """The items of a file. Raises UserError that names file and line."""
    return [_item(row, where) for where, row in objects(path, "HumanEval.jsonl", shots)]


def read_chat(path: Path, shots: int = 0) -> list[Item]:
    """The items of a file, each as a request. Raises UserError that names file and line."""
    return [Item(i.id, f"```python\n{i.prompt.rstrip()}\n```", INSTRUCTION, answer=i.answer) for i in read(path, shots)]


def _item(row: dict, where: str) -> Item:
    task_id, start, name, test = (field(row, key, str, where) for key in ("task_id", "prompt", "entry_point", "test"))
    tree = parsed(start, "prompt", where)
    if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
        raise UserError(f"{where}: the prompt has no function {name!r}, which entry_point names")
    if "check" not in {node.name for node in parsed(test, "test", where).body if isinstance(node, ast.FunctionDef)}:
        raise UserError(f"{where}: test has no function 'check'")
    # The rest of the prompt is there for the tests, and for a program that defines the function again.
    rest = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == name)]
    before = "".join(ast.unparse(node) + "\n\n" for node in rest)
    checks = f"{before}{test}\n\ncheck({name})\n"
    return Item(task_id, start, answer=Tests(checks, (name,), start, before, STOP))


TASK = Task(read, None, METRICS, stop=STOP, form="plain", program=program)
CHAT = Task(read_chat, None, METRICS, program=program)

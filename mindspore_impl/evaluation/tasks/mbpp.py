"""MBPP: short functions from a sentence and three tests (Austin et al., arXiv 2108.07732).

Files: the published `mbpp.jsonl` or its folder ({"task_id", "text", "code", "test_list", "test_setup_code"}), or the
sanitized JSON ({"task_id", "prompt", "code", "test_imports", "test_list"}, one list). Problems 11 to 510 are the test
set. Prompt: the paper's, with problems 2, 3 and 4 as worked examples between [BEGIN] and [DONE]. Metric: pass@1, by
running all of `test_list` in the sandbox.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks import code
from mindspore_impl.evaluation.tasks.base import Item, Task, field, first_shots, objects, strings
from mindspore_impl.text.records import as_object

STOP = ("[DONE]",)
TEST_IDS = range(11, 511)
SHOT_IDS = range(2, 11)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read(path: Path, shots: int = 3) -> list[Item]:
    """The items of a file. Raises UserError that names file and line (or record) of a fault."""
    problems = {}
    for where, row in _rows(path):
        number = str(field(row, "task_id", (int, str), where)).rpartition("/")[2]  # "mbpp/11" in some copies
        if not number.isdecimal():
            raise UserError(f"{where}: task_id {row['task_id']!r} is not a number")
        if int(number) in problems:
            raise UserError(f"{where}: task_id {number} occurs twice")
        problems[int(number)] = (row, where)
    shown = (_shot(*problems[number]) for number in SHOT_IDS if number in problems)
    header = first_shots(shown, shots, path)
    items = [_item(number, *problems[number], header) for number in problems if number in TEST_IDS]
    if not items:
        raise UserError(f"{path}: no problem has a task_id of the test set, 11 to 510")
    return items


def _item(number: int, row: dict, where: str, header: str) -> Item:
    tests = strings(row, "test_list", where)
    if not tests:
        raise UserError(f"{where}: test_list is empty")
    imports = "".join(f"{line}\n" for line in (strings(row, "test_imports", where) if "test_imports" in row else []))
    setup = field(row, "test_setup_code", str, where) if row.get("test_setup_code") else ""
    tree = code.parsed(field(row, "code", str, where), "code", where)
    body = "\n".join([setup, *tests])
    used = [node.id for node in ast.walk(code.parsed(body, "test_list", where)) if isinstance(node, ast.Name)]
    # The tests use names of the reference: its definitions are taken from the program, its imports are repeated.
    names = [node.name for node in tree.body if isinstance(node, _DEFINITIONS) and node.name in used]
    if not names:
        raise UserError(f"{where}: the tests use no function that code defines")
    names.sort(key=used.index)
    imported = "".join(ast.unparse(node) + "\n" for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    tested = code.Tests(f"{imported}{imports}{body}\n", tuple(names), imports, imports, STOP)
    return Item(str(number), _prompt(row, where), header, answer=tested)


def _prompt(row: dict, where: str) -> str:
    text = field(row, "text" if "text" in row else "prompt", str, where).strip()
    tests = "\n".join(strings(row, "test_list", where)[:3])  # as in the paper
    return (
        f"You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
        f"{tests}\n[BEGIN]\n"
    )


def _shot(row: dict, where: str) -> str:
    return _prompt(row, where) + "\n".join(field(row, "code", str, where).splitlines()) + "\n[DONE]"


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    if path.suffix != ".json":
        yield from objects(path, "mbpp.jsonl")
        return
    rows = files.read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of problems, found {type(rows).__name__}")
    for index, row in enumerate(rows, start=1):
        yield (where := f"{path}: record {index}"), as_object(row, where)


TASK = Task(read, None, code.METRICS, shots=3, stop=STOP, form="plain", program=code.program)

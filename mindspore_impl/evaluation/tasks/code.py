"""What HumanEval and MBPP have in common: code out of an answer, its tests run in the sandbox, pass@k.

pass@k is the unbiased estimate of Chen et al., arXiv 2107.03374: n answers of a problem, c of them right, give
1 - C(n - c, k) / C(n, k), the share of choices of k answers with a right one among them; a benchmark's is the mean.
"""

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.sandbox import Limits, Program, run_many
from mindspore_impl.evaluation.tasks.form import Item, plain

METRICS = ("pass@1",)
_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Tests:
    """What an answer is tested with (`Item.answer`).

    names: what the tests take from the program, `names[0]` the function that was asked for. start: code that an answer
    goes on from, when it does not define that function itself. before: code that stands before an answer that does.
    """

    checks: str
    names: tuple[str, ...]
    start: str = ""
    before: str = ""
    stop: tuple[str, ...] = ()


def program_of(tests: Tests, completion: str) -> str:
    """The program in a completion: its fenced block that defines the requested function, else its first block.

    Without a block it is the text up to the first of the strings `stop` (after the function's head, if it has one).
    """
    blocks = _FENCE.findall(completion)
    code = next((block for block in blocks if _head(block, tests)), blocks[0] if blocks else None)
    if code is None:
        begin = _head(completion, tests)
        code = completion[:begin] + plain(completion[begin:], tests.stop)
    return (tests.before if _head(code, tests) else tests.start) + code


def _head(code: str, tests: Tests) -> int:
    """Where `code`, which need not be valid, has named the function asked for at its top level; 0 if it does not."""
    name = re.escape(tests.names[0])
    found = re.search(rf"^(?:async +def|def|class) +{name}\b|^{name} *=", code, re.MULTILINE)
    return found.end() if found else 0


def program(item: Item, completion: str) -> Program:
    """A completion as a program, with the tests of its problem."""
    tests: Tests = item.answer
    return Program(program_of(tests, completion), tests.checks, tests.names)


def scores(programs: Sequence[Program], limits: Limits) -> list[dict]:
    """{"pass@1", "status", "error"} of each program; they run in parallel.

    Raises UserError where this machine cannot isolate them.
    """
    results = run_many(programs, limits, title="tests")
    for result in results:
        if result.status == "refused":
            raise UserError(result.error)
    return [{"pass@1": float(r.status == "passed"), "status": r.status, "error": r.error} for r in results]


def pass_at_k(total: int, right: int, k: int) -> float:
    """1 - C(total - right, k) / C(total, k). Raises UserError when total < k."""
    if not 0 <= right <= total:
        raise ValueError(f"right={right} is not between 0 and total={total}")
    if not 1 <= k <= total:
        raise UserError(f"pass@{k}: needs {k} answers a problem or more, and k of 1 or more; there are {total}")
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def parsed(code: str, name: str, where: str) -> ast.Module:
    """The syntax tree of a field of the file. Raises UserError that names place and field."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{where}: {name} is not valid Python: {error.args[0]}{line}") from error

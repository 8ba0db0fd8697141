"""Shared by HumanEval and MBPP: extract code from an answer, run its tests in the sandbox, estimate pass@k.

pass@k is the unbiased estimate of Chen et al., arXiv 2107.03374: with n answers to a problem, c of them right, it is
1 - C(n - c, k) / C(n, k), the share of the subsets of k answers that contain a right one, averaged over problems.
"""

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.sandbox.run import Limits, Program, run_many
from mindspore_impl.evaluation.tasks.base import Item, plain

METRICS = ("pass@1",)
_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Tests:
    """How an answer is tested (`Item.answer`).

    names: what the tests take from the program; `names[0]` is the requested function. start: code that an answer
    continues when it does not define that function itself. before: code placed before an answer that does.
    """

    checks: str
    names: tuple[str, ...]
    start: str = ""
    before: str = ""
    stop: tuple[str, ...] = ()


def program(item: Item, completion: str) -> Program:
    """The program of a completion, with the tests of its problem.

    It is the fenced block that defines the requested function, else the first block; without blocks the text up to the
    first stop string (after the head of that function, where it is defined).
    """
    tests: Tests = item.answer
    blocks = _FENCE.findall(completion)
    code = next((block for block in blocks if _head(block, tests)), blocks[0] if blocks else None)
    if code is None:
        begin = _head(completion, tests)
        code = completion[:begin] + plain(completion[begin:], tests.stop)
    source = (tests.before if _head(code, tests) else tests.start) + code
    return Program(source, tests.checks, tests.names)


def _head(code: str, tests: Tests) -> int:
    """The end of the requested function's top-level name in `code`, which need not be valid; 0 without one."""
    name = re.escape(tests.names[0])
    found = re.search(rf"^(?:async +def|def|class) +{name}\b|^{name} *=", code, re.MULTILINE)
    return found.end() if found else 0


def scores(programs: Sequence[Program], limits: Limits) -> list[dict]:
    """Run programs in parallel; {"pass@1", "status", "error"} of each. Raises UserError when they are refused."""
    results = run_many(programs, limits)
    for result in results:
        if result.status == "refused":
            raise UserError(result.error)
    return [{"pass@1": float(r.status == "passed"), "status": r.status, "error": r.error} for r in results]


def pass_at_k(total: int, right: int, k: int) -> float:
    """1 - C(total - right, k) / C(total, k). Raises UserError when total < k, ValueError when total < right."""
    if not 1 <= k <= total:
        raise UserError(f"pass@{k}: needs {k} answers a problem or more, and k of 1 or more; there are {total}")
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def parsed(code: str, name: str, where: str) -> ast.Module:
    """Parse a field of the file. Raises UserError that names place and field."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{where}: {name} is not valid Python: {error.args[0]}{line}") from error

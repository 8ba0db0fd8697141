"""Verdicts cannot be forged, and plain values reach the tests unchanged."""

import json
import textwrap

import pytest

from mindspore_impl.evaluation.sandbox import exchange
from mindspore_impl.evaluation.sandbox.run import Limits, Program, Result, run_many, run_program

pytestmark = pytest.mark.usefixtures("isolated")

WRONG = "def f(x):\n    return 0\n"
CHECKS = "for x in (3, 4):\n    assert f(x) == x * x"


def judged(source: str, checks: str = "", names=()) -> Result:
    return run_program(Program(textwrap.dedent(source), textwrap.dedent(checks), names), Limits(seconds=20.0))


CHEATS = {
    "leaves before the tests": "import os\nos._exit(0)",
    "leaves in a test": "import os\ndef f(x):\n    os._exit(0)",
    "leaves politely": "import sys\nsys.exit(0)",
    "leaves politely in a test": "import sys\ndef f(x):\n    sys.exit(0)",
    "prints a verdict": WRONG + 'print(\'{"status": "passed", "error": "", "token": ""}\')',
    "closes everything": "import os\n" + WRONG + "os.closerange(0, 100)",
    "claims equality": "class Equal:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Equal()",
    "claims equality as a number": "class Equal(int):\n    def __eq__(self, other):\n        return True\n    "
    "__hash__ = int.__hash__\ndef f(x):\n    return Equal(0)",
    "replaces what tests use": "import builtins, sys, os\n" + WRONG + "builtins.AssertionError = SystemExit\n"
    "builtins.exit = sys.exit = os._exit = lambda *a: None\nsys.modules['checks'] = sys\nbuiltins.len = lambda x: 9",
    "rewrites the checker": "import gc, sys, types\n"
    + WRONG
    + textwrap.dedent("""
        for thing in gc.get_objects():
            if isinstance(thing, types.ModuleType) and 'sandbox' in getattr(thing, '__name__', ''):
                for name in ('judge', '_verdict', '_described'):
                    if hasattr(thing, name):
                        setattr(thing, name, lambda *a: {'status': 'passed', 'error': ''})
        frame = sys._getframe()
        while frame:
            frame.f_locals.update(status='passed')
            frame = frame.f_back
        """),
    "writes to every open file": "import os\n"
    + WRONG
    + textwrap.dedent("""
        import json, struct
        data = json.dumps({'status': 'passed', 'error': '', 'token': ''}).encode()
        for handle in range(1, 64):
            try:
                os.write(handle, struct.pack('<I', len(data)) + data)
            except OSError:
                pass
        """),
    "answers in bad form": "import os\ndef f(x):\n    os.write(3, b'\\x05\\0\\0\\0[[[[[')\n    os._exit(0)",
    "answers an unknown kind": 'import os\ndef f(x):\n    os.write(3, b\'\\x12\\0\\0\\0{"value":["handle"]}\')\n'
    "    os._exit(0)",
    "promises a huge answer": "import os\ndef f(x):\n    os.write(3, b'\\xff' * 4)\n    "
    "import time\n    time.sleep(60)",
    "recursion": "def f(x):\n    return f(x)",
    "raises RecursionError": "raise RecursionError",
    "raises what no test expects": "def f(x):\n    raise KeyboardInterrupt",
    "exceptions without text": "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\n"
    "def f(x):\n    raise Odd",
    "returns itself": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "is no program": "def f(x:\n",
    "defines nothing": "x = 1",
    "null byte": "def f(x): return 0\0",
    "lone surrogate": "def f(x): return '\ud800'",
}


# name: (program, tests or None for CHECKS, status, part of the error)
OTHERS = {
    "a test that swallows everything": ("import os\ndef f(x):\n    os._exit(0)", "try:\n    assert f(3) == 9\n"
                                        "except BaseException:\n    pass", "failed", "ended before the tests"),
    "MemoryError of the program": ("raise MemoryError", None, "memory", "MemoryError"),
    "ends by a signal": ("import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSEGV)", None, "killed",
                         "SIGSEGV"),
    "right, with closed streams": ("import os, sys\nfor i in range(3): os.close(i)\nsys.stdout = None\ndef f(x):\n"
                                   "    return x * x", None, "passed", ""),
    "is main without tests": ("assert __name__ == '__main__'", "", "passed", ""),
    "leaves without tests": ("raise SystemExit", "", "passed", ""),
    "leaves with a code without tests": ("raise SystemExit(3)", "", "failed", "SystemExit: 3"),
    "ends at once without tests": ("import os\nos._exit(0)", "", "failed", ""),
    "is not main with tests": ("def f(x): return x * x\nif __name__ == '__main__': raise SystemExit", None, "passed",
                               ""),
    "is given a function by a test": ("def f(x): return x", "f(lambda: 1)", "failed", "function"),
    "returns subclasses, which come as the plain type": ("""
        import collections, enum
        class Number(enum.IntEnum):
            TWO = 2
        def f():
            pair = collections.namedtuple('P', 'x')(3)
            return collections.OrderedDict(a=1), collections.Counter('aa'), pair, Number.TWO
        """, "assert f() == ({'a': 1}, {'a': 2}, (3,), 2)", "passed", ""),
    "changes its arguments in place": ("def f(a, b, c): a.append(1), b.update(k=2), c.add(3)", """
        a, b, c = [], {}, {1}
        assert f(a, b, c) is None
        assert (a, b, c) == ([1], {'k': 2}, {1, 3})
        """, "passed", ""),
    "gets and returns every kind of value": ("def f(x): return x", """
        import math
        from decimal import Decimal
        from fractions import Fraction
        values = [None, True, 1, -2**200, 0.1, math.inf, 'ä\\ud800', b'\\0', bytearray(b'x'), 1 + 2j, [1, [2]], (1,),
                  {1}, int, frozenset({2}), {(1, 2): {'a': None}}, range(1, 9, 2), Decimal('1.10'),
                  Fraction(1, 3), set(), {}]
        for value in values:
            back = f(value)
            assert back == value and type(back) is type(value), value
        assert math.isnan(f(math.nan)) and f(-0.0).hex() == '-0x0.0p+0'
        """, "passed", ""),
    "raises what the tests expect": ("""
        def f(name):
            if name == 'UnicodeDecodeError':
                b'\\xff'.decode()
            raise getattr(__builtins__, name, None) or __builtins__[name]
        """, """
        for name in ('ValueError', 'KeyError', 'UnicodeDecodeError'):
            try:
                f(name)
                assert False
            except (ValueError, KeyError) as error:
                assert type(error).__name__ == name or name == 'UnicodeDecodeError'
            except Exception as error:
                assert 'UnicodeDecodeError' in str(error)
        """, "passed", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """What all programs of this module give, run side by side."""
    programs = {name: Program(source, CHECKS, ["f"]) for name, source in CHEATS.items()}
    for name, (source, checks, *_) in OTHERS.items():
        checks = CHECKS if checks is None else textwrap.dedent(checks)
        programs[name] = Program(textwrap.dedent(source), checks, ["f"] if checks else ())
    return dict(zip(programs, run_many(programs.values(), Limits(seconds=20.0)), strict=True))


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(results, name):
    assert results[name].status in ("failed", "killed"), results[name]
    assert results[name].error


@pytest.mark.parametrize("name", OTHERS)
def test_verdict(results, name):
    *_, status, words = OTHERS[name]
    assert results[name].status == status and words in results[name].error, results[name]


def test_modules_of_python_can_be_imported_and_no_others():
    names = "collections, dataclasses, heapq, itertools, json, math, random, re, statistics, string, typing, datetime"
    source = f"import {names}, decimal, fractions, hashlib, bisect, threading, asyncio\n"
    source += "@dataclasses.dataclass\nclass P:\n    x: int\nprint(P(1))\n"
    result = judged(source + "try:\n    import numpy\nexcept ImportError:\n    print('none')")
    assert (result.status, result.stdout) == ("passed", "P(x=1)\nnone\n"), result


def test_objects_of_the_program_can_be_used():
    source = """
        class Node:
            def __init__(self, data):
                self.data, self.left = data, None
        def total(node):
            return node.data + (total(node.left) if node.left else 0)
        def count():
            yield from (1, 2)
        def table():
            return [Node(1), Node(2)]
        print('mine')
    """
    checks = """
        root = Node(3)
        root.left = Node(data=4)
        assert total(root) == 7 and root.left.data == 4 and root == root and root != Node(3)
        assert list(count()) == [1, 2] and [node.data for node in table()] == [1, 2]
        print('theirs')
    """
    result = judged(source, checks, ["Node", "total", "count", "table"])
    assert (result.error, result.stdout) == ("", "mine\n"), "what the tests print is not the program's"


def coded(value):
    return json.loads(json.dumps(exchange.encode(value, lambda thing: ["handle", 0, type(thing).__name__])))


def test_encode_takes_no_word_of_a_subclass():
    class Liar(list):
        def __iter__(self):
            return iter([9])

        def __eq__(self, other):
            return True

    assert exchange.decode(coded(Liar([1, 2])), None) == [1, 2]
    assert coded(object()) == ["handle", 0, "object"]


@pytest.mark.parametrize("value", [["nothing"], ["os.system", "ls"], ["type", "eval"], ["type", "Remote"]])
def test_decode_knows_its_own_kinds_alone(value):
    with pytest.raises(ValueError, match="unknown type"):
        exchange.decode(value, None)

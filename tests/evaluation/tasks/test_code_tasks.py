"""HumanEval and MBPP: prompts, the code of an answer, tests that pass what is right and fail what is not, pass@k."""

import itertools
import json
from pathlib import Path

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.benchmark import BenchmarkSettings, read_benchmark
from mindspore_impl.evaluation.sandbox import run
from mindspore_impl.evaluation.sandbox.run import Isolation, Limits, Program
from mindspore_impl.evaluation.tasks import code, humaneval, mbpp
from mindspore_impl.evaluation.tasks.base import Item

HUMANEVAL = Path(__file__).parent / "data" / "humaneval" / "HumanEval.jsonl"
MBPP = Path(__file__).parent / "data" / "mbpp" / "mbpp.jsonl"
SANITIZED = MBPP.with_name("sanitized-mbpp.json")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(tmp_path: Path, source: Path, number: int, **fields) -> Path:
    """A copy of the file whose line `number` has other fields (None: without)."""
    lines = rows(source)
    lines[number - 1] = {k: v for k, v in (lines[number - 1] | fields).items() if v is not None}
    path = tmp_path / source.name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def statuses(items, completions) -> list[str]:
    programs = [code.program(item, text) for item, text in zip(items, completions, strict=True)]
    return [found["status"] for found in code.scores(programs, Limits(seconds=20.0))]


def test_humaneval_prompts():
    items, chat = humaneval.read(HUMANEVAL), humaneval.read_chat(HUMANEVAL.parent)
    assert [item.id for item in items] == ["HumanEval/0", "HumanEval/1", "HumanEval/2"]
    assert [item.prompt for item in items] == [row["prompt"] for row in rows(HUMANEVAL)]
    assert not items[0].header and chat[0].header == humaneval.INSTRUCTION
    assert chat[0].prompt == f"```python\n{items[0].prompt.rstrip()}\n```"


def test_humaneval_canonical_solutions_pass_in_every_form_and_wrong_ones_fail(isolated):
    known = rows(HUMANEVAL)
    items = humaneval.read(HUMANEVAL)
    continued = [row["canonical_solution"] + "\n\nprint('and so on'\n" for row in known]
    whole = [row["prompt"] + row["canonical_solution"] for row in known]
    fenced = [f"Here it is:\n\n```python\n{text}```\nIt is `O(n)`." for text in whole]
    bare = [text[text.index(f"def {row['entry_point']}") :] for text, row in zip(whole, known, strict=True)]
    wrong = [
        "    return sum(value >= level for value in values)\n",
        "    return width + height\n",
        "    return len(words) - len([word for word in words if word])\n",  # right number, but not in place
    ]
    assert statuses(items * 4, continued + fenced + bare + wrong) == ["passed"] * 9 + ["failed"] * 3


def test_mbpp_prompt_is_the_papers():
    items = mbpp.read(MBPP, 3)
    assert [item.id for item in items] == ["11", "12", "13"]  # 2 to 4 are shown, 601 is no test problem
    assert items[0].header.startswith(
        "You are an expert Python programmer, and here is your task: Write a function to double a number. "
        "Your code should pass these tests:\n\n"
        "assert double(1) == 2\nassert double(0) == 0\nassert double(-3) == -6\n[BEGIN]\n"
        "def double(n):\n  return 2 * n\n[DONE]\n\nYou are an expert"
    )
    assert items[0].header.count("[DONE]\n\n") == 3 and items[0].header.endswith("[DONE]\n\n")
    assert items[2].prompt.endswith(
        "tests:\n\nassert sum(4, 6) == 3\nassert sum(5, 7) == 1\nassert sum(6, 6) == 12\n[BEGIN]\n"
    )
    assert mbpp.read(MBPP.parent, 0)[0].header == ""


def test_mbpp_reference_solutions_pass_and_mutants_fail(isolated):
    items = mbpp.read(MBPP, 0)
    known = {str(row["task_id"]): row["code"] for row in rows(MBPP)}
    right = [known[item.id] + "\n[DONE]\n\nYou are an (" for item in items]
    fenced = [f"Sure!\n```python\n{known[item.id]}\n```" for item in items]
    wrong = [
        text.replace("hypot(x, y)", "hypot(x, x)").replace("+= cell.data", "= cell.data").replace("b % i == 0", "i > 0")
        for text in right
    ]
    assert all(a != b for a, b in zip(right, wrong, strict=True))
    assert statuses(items * 3, right + fenced + wrong) == ["passed"] * 6 + ["failed"] * 3


def test_sanitized_mbpp(isolated):
    items = mbpp.read(SANITIZED, 2)
    known = {str(row["task_id"]): row["code"] for row in json.loads(SANITIZED.read_text())}
    assert [item.id for item in items] == ["11", "13"] and items[0].header.count("[BEGIN]") == 2
    assert statuses(items, [known[item.id] for item in items]) == ["passed"] * 2
    # test_imports are there for the program too, as in one common namespace.
    answers = [f"def distance(x, y):\n    return {text}" for text in ("math.sqrt(x * x + y * y)", "5.0")]
    right, wrong = code.scores([code.program(items[0], text) for text in answers], Limits(seconds=20.0))
    assert right == {"pass@1": 1.0, "status": "passed", "error": ""}
    assert wrong["pass@1"] == 0.0 and wrong["error"].startswith("AssertionError")


TESTS = code.Tests("", ("f",), start="def f(x):\n", before="import math\n", stop=("\ndef", "\n#"))


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("    return x\n", "def f(x):\n    return x\n"),
        ("    return x\ndef g(): pass", "def f(x):\n    return x"),
        ("    return x\n# that is all", "def f(x):\n    return x"),
        ("a\n```python\ndef f(x): return 1\n```\nb", "import math\ndef f(x): return 1\n"),
        ("```\ndef g(): pass\n```\n```py\ndef g(): pass\ndef f(x): return 1\n```", None),
        ("```python\n    return x\n```", "def f(x):\n    return x\n"),
        ("```python\ndef f(x): return 1\n", "import math\ndef f(x): return 1\n"),  # the answer was cut
        ("import re\n\ndef f(x):\n    return 1\n\ndef g(: text", "import math\nimport re\n\ndef f(x):\n    return 1\n"),
        ("f = abs", "import math\nf = abs"),
        ("def ff(x): return 1", "def f(x):\ndef ff(x): return 1"),
        ("", "def f(x):\n"),
    ],
)
def test_code_of_an_answer(completion, program):
    program = "import math\ndef g(): pass\ndef f(x): return 1\n" if program is None else program
    assert code.program(Item("0", "", answer=TESTS), completion).source == program


@pytest.mark.parametrize(
    ("task", "fields", "word"),
    [
        (humaneval, {"entry_point": None}, "entry_point"),
        (humaneval, {"entry_point": "other"}, "'other'"),
        (humaneval, {"test": 5}, "test"),
        (humaneval, {"test": "def check(:"}, "test"),
        (humaneval, {"test": "x = 1"}, "'check'"),
        (humaneval, {"prompt": "def (\0"}, "prompt"),
        (mbpp, {"task_id": "MBPP/x"}, "task_id"),
        (mbpp, {"task_id": 11}, "task_id 11"),
        (mbpp, {"code": "def f(:"}, "code"),
        (mbpp, {"test_list": []}, "test_list"),
        (mbpp, {"test_list": [1]}, "test_list"),
        (mbpp, {"test_list": ["assert 1 =="]}, "test_list"),
        (mbpp, {"code": "x = 1"}, "code"),
        (mbpp, {"text": None}, "prompt"),
    ],
)
def test_a_fault_names_its_place(tmp_path, task, fields, word):
    source, line = (HUMANEVAL, 2) if task is humaneval else (MBPP, 5)
    with pytest.raises(UserError, match=f"{source.name}:{line}: .*{word}"):
        task.read(changed(tmp_path, source, line, **fields))


def test_faults_of_the_sanitized_form_name_their_place(tmp_path):
    path = tmp_path / "x.json"
    for text, word in [('{"a": 1}', "list"), ("[1]", "record 1"), (json.dumps([rows(MBPP)[0]]), "task_id")]:
        path.write_text(text)
        with pytest.raises(UserError, match=f"x.json: .*{word}"):
            mbpp.read(path, 0)


def test_shots_that_are_not_there():
    with pytest.raises(UserError, match="mbpp.jsonl: .*4 shots"):
        mbpp.read(MBPP, 4)
    with pytest.raises(UserError, match="HumanEval.jsonl: .*shots"):
        humaneval.read(HUMANEVAL, 1)


@pytest.mark.parametrize("name", ["humaneval", "humaneval_chat", "mbpp"])
def test_a_machine_without_isolation_is_refused_before_anything_is_generated(monkeypatch, name):
    monkeypatch.setattr(run, "isolation", lambda: Isolation((), {"landlock": "not here"}, ("files",)))
    with pytest.raises(UserError, match="files not protected"):
        code.scores([Program("print(1)")], Limits())
    with pytest.raises(UserError, match="files not protected"):
        read_benchmark(name, HUMANEVAL if name != "mbpp" else MBPP, BenchmarkSettings(shots=0))
    allowed = BenchmarkSettings(shots=0, limits=Limits(require_isolation=False))
    assert read_benchmark(name, HUMANEVAL if name != "mbpp" else MBPP, allowed)


def test_pass_at_k():
    """The share of the subsets of k answers that hold a right one; worked numbers; and the paper's own product."""
    for total, right in itertools.product(range(1, 7), range(7)):
        for k in range(1, total + 1) if right <= total else ():
            choices = list(itertools.combinations(range(total), k))
            share = sum(min(choice) < right for choice in choices) / len(choices)  # answers 0 .. right-1 are right
            assert code.pass_at_k(total, right, k) == pytest.approx(share, abs=1e-12)
    assert code.pass_at_k(200, 20, 1) == pytest.approx(0.1, abs=1e-15)
    product = 1.0  # 1 - prod over i of (1 - k / i), n - c < i <= n, avoids large binomials
    for i in range(200 - 13 + 1, 201):
        product *= 1 - 100 / i
    assert code.pass_at_k(200, 13, 100) == pytest.approx(1 - product, rel=1e-12)
    with pytest.raises(UserError, match="pass@3"):
        code.pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="negative"):
        code.pass_at_k(2, 3, 1)

"""Mutation tests: every entry of tests/mutants/*.jsonl is a faulty edit of the program that its test must catch.

traps.jsonl holds faults that real distillation projects had (`trap` is the number in tests/README.md);
security.jsonl and durability.jsonl hold one fault for each `promise`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = [
    pytest.param(mutant, id=f"{path.stem}: {mutant['name']}")
    for path in sorted((ROOT / "tests" / "mutants").glob("*.jsonl"))
    for mutant in map(json.loads, path.read_text(encoding="utf-8").splitlines())
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the project to edit."""
    target = tmp_path_factory.mktemp("tree")
    for name in ("mindspore_impl", "conf", "kernels", "tests", "tools"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def run_test(tree: Path, test: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(tree, mutant):
    path = tree / mutant["file"]
    source = path.read_text(encoding="utf-8")
    assert source.count(mutant["find"]) == 1, f"{mutant['file']}: the text to replace is not there exactly once"
    path.write_text(source.replace(mutant["find"], mutant["replace"]), encoding="utf-8")
    try:
        result = run_test(tree, mutant["test"])
    finally:
        path.write_text(source, encoding="utf-8")
    # 1 = tests ran and failed; anything else (5: not collected, 4: no such test) proves nothing.
    assert result.returncode == 1, f"survived or did not run ({result.returncode}):\n{result.stdout[-2000:]}"
    assert "SyntaxError" not in result.stdout, "the mutant is not a program"


def problem(mutant: dict) -> str:
    """What is wrong with an entry, or ""."""
    if set(mutant) - {"trap", "promise"} != {"name", "file", "find", "replace", "test"} or len(mutant) != 6:
        return f"keys {sorted(mutant)}"
    file, test = ROOT / mutant["file"], mutant["test"].partition("::")
    if not file.is_file() or file.read_text(encoding="utf-8").count(mutant["find"]) != 1:
        return f"{mutant['find']!r} is not exactly once in {mutant['file']}"
    function, module = test[2].split("::")[-1].split("[")[0], ROOT / test[0]
    if not module.is_file() or f"def {function}(" not in module.read_text(encoding="utf-8"):
        return f"there is no {mutant['test']}"
    return ""


def test_every_mutant_is_well_formed():
    mutants = [parameter.values[0] for parameter in MUTANTS]
    problems = [f"{mutant['name']}: {found}" for mutant in mutants if (found := problem(mutant))]
    assert mutants
    assert not problems, "\n".join(problems)
    assert {mutant["trap"] for mutant in mutants if "trap" in mutant} == set(range(1, 19))

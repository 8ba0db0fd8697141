"""Rules of architecture that ruff does not hold (see pyproject.toml for those it does).

Each test loops over all modules and fails with the full list of offenders.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mindspore_impl"

# Rooms from upper to lower: each may import the rooms of the lines below its own, and itself.
ROOMS = (
    PACKAGE,  # __init__.py, the public API
    "cli",
    "api",
    "curriculum",
    "speed",
    "integrations",
    "doctor",
    "export report evaluation distill training",
    "generation",
    "data",
    "losses checkpoint",
    "model",
    "text",
    "ops",
    "config",
    "distributed",
    "runtime",
    "schema",
    "files",
    "errors",
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms.split()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}


def room_of(module: str) -> str:
    return [*module.split("."), PACKAGE][1] if "." in module else PACKAGE


def imports_of(module: str) -> Iterator[tuple[str, str]]:
    """(module of ours, imported name or "") for every import in a module, wherever it stands."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, "") if inner in SOURCES else (node.module, alias.name)


def fail_on(offenders: list[str]) -> None:
    assert not offenders, "\n".join(["", *offenders])


def test_imports_run_downward():
    fail_on([f"{module}: its room has no place in ROOMS" for module in SOURCES if room_of(module) not in RANK])
    fail_on(
        [
            f"{module} imports {imported}"
            for module in SOURCES
            for imported, _ in imports_of(module)
            if room_of(imported) != room_of(module) and RANK[room_of(imported)] <= RANK[room_of(module)]
        ]
    )


def test_imports_form_no_cycle():
    graph = {module: {imported for imported, _ in imports_of(module)} - {module} for module in SOURCES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_private_names_stay_in_their_room():
    fail_on(
        [
            f"{module} imports {imported}.{name}"
            for module in SOURCES
            for imported, name in imports_of(module)
            if name.startswith("_") and not name.startswith("__") and room_of(imported) != room_of(module)
        ]
    )


def test_files_stay_under_500_lines():
    fail_on([f"{module}: {lines} lines" for module in SOURCES if (lines := SOURCES[module].count("\n")) > 500])


def test_only_ops_runtime_and_doctor_ask_for_the_device():
    rest = [module for module in SOURCES if room_of(module) not in {"ops", "runtime", "doctor"}]
    asked = ("runtime.device()", "device_target")
    fail_on([f"{module}: {text}" for module in rest for text in asked if text in SOURCES[module]])


def test_docstrings_list_more_than_four_parameters():
    fail_on(
        [
            f"{module}: {node.name} needs `Args:`"
            for module, tree in TREES.items()
            for holder in ast.walk(tree)
            if isinstance(holder, ast.Module | ast.ClassDef) and not getattr(holder, "name", "").startswith("_")
            for node in holder.body
            if isinstance(node, ast.FunctionDef) and node.name not in ("construct", "bprop")  # their Cell says it
            if not node.name.startswith("_") and len(node.args.args + node.args.kwonlyargs) > 4 + (holder is not tree)
            if "Args:" not in (ast.get_docstring(node) or "")
        ]
    )


def test_no_remote_code_is_trusted():
    fail_on(
        [
            f"{module}:{node.lineno}"
            for module, tree in TREES.items()
            for node in ast.walk(tree)
            if "trust_remote_code" in (getattr(node, "arg", ""), getattr(node, "value", ""))
        ]
    )


def test_importing_the_package_is_quick():
    code = f"""
import sys, time
start = time.perf_counter()
import {PACKAGE}
print(time.perf_counter() - start, len({{"mindspore", "numpy", "hydra"}} & set(sys.modules)))
"""
    runs = [subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    assert [heavy for _, heavy in runs] == ["0"] * 3


def test_slow_tests_are_listed():
    tests = ROOT / "tests"
    page = (tests / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\S+\.py)` \|", page.partition("## What is slow")[2], re.MULTILINE))
    marked = {
        str(path.relative_to(tests))
        for path in tests.rglob("test_*.py")
        if "pytest.mark.slow" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    fail_on([f"tests/README.md does not say why {name} has slow tests" for name in sorted(marked - listed)])
    fail_on([f"tests/README.md lists {name}, which has no slow test" for name in sorted(listed - marked)])


def test_plan_runner_cache_launch_and_report_know_no_kind():
    kinds = {path.stem for path in (ROOT / PACKAGE / "curriculum" / "stages").glob("*.py")}
    kinds -= {"__init__", "base", "context", "inputs"}
    rooms = ("curriculum.plan", "curriculum.runner", "curriculum.cache", "curriculum.launch", "report.")
    offenders = [
        f"{module}: {node.value!r}"
        for module in SOURCES
        if module.startswith(tuple(f"{PACKAGE}.{room}" for room in rooms))
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Constant) and node.value in kinds
    ]
    assert len(kinds) == 8
    fail_on(offenders)

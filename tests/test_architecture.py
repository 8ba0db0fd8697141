"""The rules of the house: imports run one way, rooms keep their private names, files stay readable."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mindspore_impl"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each room may import rooms of lower rank, and itself.
RANKS = [
    {"cli"},
    {"curriculum", "speed", "integrations", "doctor"},
    {"training", "distill", "evaluation", "export", "report"},
    {"generation"},
    {"data"},
    {"losses", "checkpoint"},
    {"model"},
    {"text"},
    {"ops"},
    {"config"},
    {"distributed"},
    {"runtime"},
    {"files"},
    {"schema"},
    {"errors"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path):
    """(module, imported name) for every import of ours in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mindspore_impl":
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mindspore_impl":
                    yield alias.name, ""


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    here = room_of(path)
    if here == "__init__":
        return
    assert here in RANK, f"{here} has no place in the order of rooms"
    for module, name in imports_of(path):
        parts = module.split(".")
        there = parts[1] if len(parts) > 1 else name
        is_options = module.endswith(".options")
        assert path.name != "options.py" or there == "schema", "an options.py imports schema alone"
        if there == here or (is_options and here == "config"):
            continue
        assert RANK[there] > RANK[here], f"{here} imports {there}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_names_stay_in_their_room(path):
    for module, name in imports_of(path):
        parts = module.split(".")
        if len(parts) > 1 and parts[1] != room_of(path):
            assert not name.startswith("_"), f"{module}.{name} is private"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_ops_and_runtime_ask_for_the_device(path):
    source = path.read_text(encoding="utf-8")
    if room_of(path) not in {"ops", "runtime", "doctor"}:
        assert "runtime.device()" not in source
        assert "device_target" not in source


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_unsafe(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert not (isinstance(node.func, ast.Name) and name in {"eval", "exec"})
        if isinstance(node, ast.Import):
            assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle", "marshal"}
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name != "__init__.py" or tree.body:
        assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"

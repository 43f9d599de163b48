"""The house rules: imports only go down and stay light, every public name is documented, the wheel is whole."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sparselayers as sl
import sparselayers.functional as F

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sparselayers"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "ops": 0,
    "prox": 1,
    "schedules": 1,
    "proxgrad": 1,
    "positive": 1,
    "mappings": 2,
    "coding": 3,
    "attention": 3,
    "sparsify": 3,
    "functional": 4,
    "plotting": 4,
    "doctor": 4,
    "demo": 4,
    "testing": 4,
    "integrations": 4,
    "__main__": 4,
    "__init__": 4,
}
SHARED_FLOORS = {1, 4}  # elsewhere packages of one floor are peers that never import each other
HEAVY = {"scipy", "matplotlib", "entmax", "numba", "triton", "transformers", "sklearn", "tqdm"}
MOST_LINES = 320

# Results and the abstract base are documented by what makes them; an operator without a paper has no source to cite.
NOT_OPERATORS = {
    "Comparison", "LassoResult", "Measurement", "Penalty", "SparsityReport", "SimplexResult", "TargetResult", "Thresholded",
}  # fmt: skip
NO_PAPER = {
    "Box", "Constant", "compact", "Grouped", "Nonnegative", "compare", "kernels", "load_compact", "measure", "restore_attention", "sparsity_report",
    "swap_attention",
}  # fmt: skip


def room(path: Path) -> str:
    """The part of the house a file belongs to: its package, or its own name at the top."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of this package in a file, wherever in the file it stands."""
    above = ("sparselayers", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = above[: len(above) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            # `from .. import positive` names a module after the import, not before it.
            targets = [(*base, alias.name) for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == "sparselayers":
                yield node.lineno, target[1] if len(target) > 1 and target[1] in FLOORS else "__init__"


def module_level_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top name) of every absolute import outside functions."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, (node.module or "").partition(".")[0]
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo.extend(ast.iter_child_nodes(node))


def may_import(here: str, there: str) -> bool:
    if here == there or FLOORS[there] < FLOORS[here]:
        return True
    return FLOORS[there] == FLOORS[here] and FLOORS[here] in SHARED_FLOORS


def public() -> dict[str, object]:
    functions = {name: getattr(F, name) for name in F.__all__}
    names = {n: o for n, o in vars(sl).items() if not n.startswith("_") and not isinstance(o, ModuleType)}
    return functions | names


def test_every_file_has_a_floor() -> None:
    assert sorted({room(path) for path in FILES} - FLOORS.keys()) == []


def test_imports_only_go_down() -> None:
    offences = [
        f"{path.relative_to(ROOT)}:{line}: floor {FLOORS[room(path)]} imports {there} on floor {FLOORS[there]}"
        for path in FILES
        for line, there in own_imports(path)
        if not may_import(room(path), there)
    ]
    assert not offences, "\n".join(offences)


def test_floor_0_needs_only_torch_and_the_standard_library() -> None:
    """But for the kernels, which are imported when first used, and only where their compiler is installed."""
    allowed = {"torch"} | sys.stdlib_module_names
    offences = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in FILES
        if room(path) == "ops" and not re.match("(numba|triton)_", path.name)
        for line, name in module_level_imports(path)
        if name not in allowed
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("here", ["coding", "attention", "sparsify"])
@pytest.mark.parametrize("there", ["coding", "attention", "sparsify", "functional"])
def test_the_rule_itself_forbids_peers_and_going_up(here: str, there: str) -> None:
    assert may_import(here, there) == (here == there)


def test_import_brings_in_nothing_heavy() -> None:
    script = "import sys, torch; before = set(sys.modules); import sparselayers; print(*(set(sys.modules) - before))"
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "sparselayers" in loaded
    assert sorted(loaded & HEAVY) == []


@pytest.mark.parametrize("name", sorted(public()))
def test_public_names_are_documented(name: str) -> None:
    text = getattr(public()[name], "__doc__", None)
    assert text, f"{name} has no docstring"
    if name in NOT_OPERATORS:
        return
    assert ">>> " in text, f"{name} has no doctest"
    assert "When not to use:" in text
    assert ("Source:" in text) == (name not in NO_PAPER)


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}


def test_the_wheel_holds_the_package_and_its_type_marker(tmp_path: Path) -> None:
    assert (PACKAGE / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["sparselayers"]
    if importlib.util.find_spec("hatchling") is None:
        return  # what follows builds a wheel, which needs the build backend; it is no dependency of the tests
    script = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert "sparselayers/py.typed" in inside
    assert {name.partition("/")[0] for name in inside} == {"sparselayers"}
    assert {f"sparselayers/{path.relative_to(PACKAGE)}" for path in FILES} <= inside

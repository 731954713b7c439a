"""The structure of the package, read from its imports: direction, boundaries, bans, sizes."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "toolkit" / "edgellm"
IMPORT_ALONE = Path(__file__).resolve().parent / "support" / "import_alone.py"

# Rooms from leaf to top. A room imports from rows above its own; inside a row that is marked so, from rooms to its left.
ROWS: tuple[tuple[bool, tuple[str, ...]], ...] = (
    (True, ("errors", "units", "resources", "outside")),
    (False, ("formats",)),
    (True, ("shape", "targets", "checkpoint", "artifact", "locks", "staging", "scratch", "workload")),
    (True, ("report", "protocols", "registry")),
    (True, ("process", "machine", "meters", "native", "hub")),
    (False, ("convert", "runtime", "planner", "profiler", "cost")),
    (False, ("server", "farm", "doctor")),
    (False, ("api",)),
    (False, ("cli", "_pyinstaller")),
)
RANK = {room: (i, j) for i, (_, row) in enumerate(ROWS) for j, room in enumerate(row)}
TOP = {"__init__", "__main__"}  # the package's own doors

ONLY_IN = {
    "llama_cpp": ("native",),
    "onnxruntime": ("native",),
    "click": ("cli",),
    "rich": ("cli",),
    "jinja2": ("runtime",),
    "gguf": ("convert",),
    "psutil": ("machine", "process"),
    "subprocess": ("machine", "process"),
    "huggingface_hub": ("hub",),
    "httpx2": ("hub",),
    "filelock": ("hub",),
}
BANNED_MODULES = {
    "pickle", "marshal", "shelve", "dill", "torch", "transformers", "optimum", "yaml", "requests", "urllib.request",
    "http.client", "socket", "safetensors",
}  # fmt: skip
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "Environment", "Template", "extractall", "urlopen"}
# Programs for another interpreter, which has these; nothing of the package imports them.
OUTSIDE = {"torch", "transformers"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# Smells that are what they are: the reason stands beside each.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


KNOWN = {module_name(path) for path in sources()}


def imports_of(path: Path) -> set[str]:
    """Modules named by import statements anywhere in the file, functions included, annotations-only blocks left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & KNOWN
            found |= modules if modules and modules == names else names | {node.module or ""}
    return found


def edges() -> set[tuple[str, str]]:
    """(importing module, imported module), both of this package."""
    found = set()
    for path in sources():
        me = module_name(path)
        found |= {(me, other) for other in imports_of(path) & KNOWN if other not in {me, "edgellm"}}
    return found


def test_every_room_is_in_the_plan() -> None:
    rooms = {room_of(module_name(path)) for path in sources()} - TOP
    assert rooms <= set(RANK), f"rooms that no row names: {rooms - set(RANK)}"


def test_imports_point_one_way() -> None:
    wrong = []
    for me, other in sorted(edges()):
        mine, theirs = room_of(me), room_of(other)
        if mine in TOP or mine == theirs:
            continue
        my_row, my_place = RANK[mine]
        their_row, their_place = RANK[theirs]
        leftwards = ROWS[my_row][0] and my_row == their_row and their_place < my_place
        if not (their_row < my_row or leftwards):
            wrong.append(f"{me} -> {other}")
    assert wrong == []


def test_no_module_is_part_of_a_cycle() -> None:
    arrows: dict[str, set[str]] = {}
    for me, other in edges():
        arrows.setdefault(me, set()).add(other)
    state: dict[str, int] = {}
    cycles = []

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if state.get(module) == 1:
            cycles.append(" -> ".join([*trail[trail.index(module) :], module]))
        if state.get(module):
            return
        state[module] = 1
        for other in sorted(arrows.get(module, ())):
            visit(other, (*trail, module))
        state[module] = 2

    for module in sorted(arrows):
        visit(module, ())
    assert cycles == []


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_stays_in_its_room(library: str) -> None:
    wrong = [
        module_name(path)
        for path in sources()
        if any(name == library or name.startswith(f"{library}.") for name in imports_of(path))
        and room_of(module_name(path)) not in ONLY_IN[library]
    ]
    assert wrong == []


def test_dangerous_modules_are_never_imported() -> None:
    used = {(module_name(path), name) for path in sources() for name in imports_of(path) & BANNED_MODULES}
    assert {(module, name) for module, name in used if room_of(module) != "outside"} == set()
    assert {name for _, name in used} <= OUTSIDE


def test_nothing_imports_a_program_for_another_interpreter() -> None:
    assert {me for me, other in edges() if other.startswith("edgellm.outside.")} == set()


def test_dangerous_calls_are_never_made() -> None:
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in BANNED_CALLS and ast.unparse(node.func) != "re.compile":
                found.append(f"{module_name(path)}:{node.lineno} {ast.unparse(node.func)}")
            found += [
                f"{module_name(path)}:{node.lineno} shell"
                for keyword in node.keywords
                if keyword.arg == "shell"
            ]
    assert found == []


def imports_alone(modules: Sequence[str], *paths: Path) -> list[str]:
    """What cannot be imported where nothing of the package was imported before, and how many were tried."""
    done = subprocess.run(
        [sys.executable, "-P", IMPORT_ALONE, *modules], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *sys.path])},
    )  # fmt: skip
    return done.stdout.splitlines() + [f"stderr: {line}" for line in done.stderr.splitlines()[-1:]]


def test_every_module_imports_alone() -> None:
    """So that none leans on what another imported before."""
    modules = [
        module_name(path)
        for path in sources()
        if path.stem.isidentifier()
        and path.stem != "__main__"
        and (path.parent.name != "outside" or path.stem == "__init__")
    ]
    assert imports_alone(modules) == [f"{len(modules)} tried"]


def test_a_module_that_leans_on_another_is_found(tmp_path: Path) -> None:
    package = tmp_path / "leaning"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("import numpy\nimport leaning.b\nx = leaning.b.y")
    (package / "b.py").write_text("import msgspec\ny = 1")
    (package / "c.py").write_text("import leaning\nx = leaning.b.y")
    (package / "d.py").write_text("import sys\nassert 'numpy' not in sys.modules\nx = msgspec")
    (package / "e.py").write_text("import os\nos.abort()")
    found = imports_alone([f"leaning.{name}" for name in "abcde"], tmp_path)
    assert sorted(line[:26] for line in found) == [
        "5 tried", "leaning.c: AttributeError:", "leaning.d: NameError: name", "leaning.e: died of signal "
    ]  # fmt: skip


def test_files_are_of_readable_size() -> None:
    long = {
        str(path.relative_to(PACKAGE)): n
        for path in sources()
        if (n := path.read_text().count("\n")) > MAX_FILE_LINES
        and str(path.relative_to(PACKAGE)) not in LONG_FILES
    }
    assert long == {}


def test_functions_are_of_readable_size() -> None:
    """Counted without the docstring and the signature."""
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                n = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                name = f"{path.relative_to(PACKAGE)}:{node.name}"
                if n > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS:
                    long[name] = n
    assert long == {}


def test_the_rows_name_each_room_once() -> None:
    rooms = list(itertools.chain.from_iterable(row for _, row in ROWS))
    assert len(rooms) == len(set(rooms))

"""Who may import whom: rooms and the few files beside them, in the direction of the paper."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import tinyr1

# Of a room (or a file beside the rooms), the others that it may import, inside functions too.
MAY_IMPORT = {
    "nano": set(),
    "common": set(),
    "thinking": set(),
    "record": {"thinking"},
    "model": {"common", "thinking", "record"},
    "graders": {"common", "thinking", "record"},
    "check": {"common", "model"},
    "data": {"common", "thinking", "record", "model", "graders"},
    "merge": {"common", "model"},
    "sampling": {"common", "thinking", "record", "model"},
    "train": {"common", "record", "model", "check"},
    "evaluate": {"common", "thinking", "record", "model", "graders", "data", "sampling"},
    "teacher": {"common", "record", "model", "graders", "data", "sampling"},
    "lab": {"common", "thinking", "record", "model", "graders", "train", "merge", "sampling"}
    | {"evaluate"},
}
PACKAGE = Path(tinyr1.__file__).parent
HEAVY = {"vllm", "flash_attn", "datasets", "math_verify", "matplotlib", "transformers", "mergekit"}


def modules():
    """(dotted name without the package, syntax tree) of every file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name != "__init__":
            yield name.removesuffix(".__init__"), ast.parse(path.read_text())


NAMES = {name for name, _ in modules()}


def imported(tree):
    """Modules of the package that a tree imports, at any depth of nesting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tinyr1":
            inner = node.module.removeprefix("tinyr1").lstrip(".")
            for alias in node.names:
                full = f"{inner}.{alias.name}".lstrip(".")
                yield full if full in NAMES else inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("tinyr1."):
                    yield alias.name.removeprefix("tinyr1.")


def test_rooms_import_only_what_they_may():
    wrong = []
    for name, tree in modules():
        room = name.split(".")[0]
        for target in imported(tree):
            other = target.split(".")[0]
            if other and other not in MAY_IMPORT[room] | {room}:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_the_table_has_no_more_than_is_used():
    used = {room: set() for room in MAY_IMPORT}
    for name, tree in modules():
        used[name.split(".")[0]] |= {t.split(".")[0] for t in imported(tree)} - {""}
    assert {room: used[room] - {room} for room in used} == MAY_IMPORT


def test_no_module_imports_itself_in_a_circle():
    graph = {name: set(imported(tree)) - {"", name} for name, tree in modules()}
    # A room's __init__ hands names on; a file of the room may be read before it is whole.
    rooms = {name for name in graph if name in MAY_IMPORT and (PACKAGE / name).is_dir()}
    graphlib.TopologicalSorter({n: g - rooms for n, g in graph.items()}).prepare()


def test_heavy_packages_are_imported_where_they_are_used():
    wrong = []
    for name, tree in modules():
        for node in tree.body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            wrong += [f"{name}: {n}" for n in names if n.split(".")[0] in HEAVY]
    assert not wrong


def test_the_model_needs_torch_only():
    code = (
        "import sys, torch; before = set(sys.modules); import tinyr1.model; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'tinyr1', 'torch', '_cython'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

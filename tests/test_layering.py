"""The layers of the package: a module imports from lower rows, or from its left in its own row."""

import ast
import subprocess
import sys
from pathlib import Path

import tinyr1

ROWS = [
    [
        "start",
        "errors",
        "thinking",
        "record",
        "files",
        "config",
        "log",
        "stats",
        "plot",
        "ranks",
        "paper",
        "published",
    ],
    [
        "weights",
        "tokenizer",
        "chat",
        "answer",
        "packing",
        "loss",
        "optim",
        "quartiles",
        "fusion",
        "methods",
        "sandbox_child",
        "sandbox",
    ],
    [
        *("model_config", "model", "flops", "parallel", "checkpoint", "check", "corpus"),
        *(
            "graders.latex",
            "graders.names",
            "graders.units",
            "graders.math",
            "graders.choice",
            "graders.code",
            "graders.released",
            "graders.symbolic",
            "graders",
        ),
        *("data", "data.clean", "data.compare", "data.math", "data.coding", "data.science"),
    ],
    [
        *(
            "benchmarks",
            "tasks",
            "sampling",
            "sampling.queue",
            "sampling.draw",
            "sampling.sampler",
            "sampling.engine",
            "sampling.vllm",
            "sampling.openai",
            "sampling.run",
            "sampling.build",
            "train_plan",
            "metrics",
            "sft",
            "preview",
            "memory",
        ),
        *("merge_plan", "merge_card", "merging"),
    ],
    [
        "scores",
        "report",
        "diff",
        "evaluation",
        "data.sources",
        "data.pipeline",
        "data.__main__",
        "teacher",
    ],
    [
        "lab",
        "lab.world",
        "lab.initial",
        "lab.stages",
        "lab.figure2",
        "lab.findings",
        "lab.__main__",
    ],
]
PLACE = {module: (r, c) for r, row in enumerate(ROWS) for c, module in enumerate(row)}
PACKAGE = Path(tinyr1.__file__).parent
# (module, imported): `model` reads files only inside from_pretrained.
HEAVY = {"vllm", "flash_attn", "datasets", "math_verify", "matplotlib", "transformers", "mergekit"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        if name != "__init__":
            yield name, ast.parse(path.read_text())


def imported(tree):
    """Names of the package's modules that a tree imports, at any depth of nesting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinyr1"):
            inner = node.module.removeprefix("tinyr1").lstrip(".")
            for alias in node.names:
                full = f"{inner}.{alias.name}" if inner else alias.name
                yield full if full in PLACE else inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("tinyr1."):
                    yield alias.name.removeprefix("tinyr1.")


def test_every_module_has_a_place():
    assert {name for name, _ in modules()} == set(PLACE)


def test_imports_go_down_or_left():
    wrong = []
    for name, tree in modules():
        for target in imported(tree):
            if target and PLACE[target] >= PLACE[name]:
                wrong.append(f"{name} imports {target}")
    assert not wrong


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

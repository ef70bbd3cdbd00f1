"""Every name of torch that the package uses, so that none is newer than the oldest torch allowed.

golden/torch_2_11.txt was compared with the sources of torch 2.11.0: all of these are there. What is
newer is in NEWER with the file that does without it where it is missing. A name in neither makes
this fail: look it up in 2.11 before adding it.
"""

import ast
import re

from conftest import ROOT

KNOWN = set((ROOT / "tests" / "golden" / "torch_2_11.txt").read_text().split())
NEWER = {"enable_gqa": "model/qwen2.py"}  # varlen_attn's argument, since 2.13


def used_names():
    names = set()
    for path in (ROOT / "tinyr1").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                module = node.module.removeprefix("torch").lstrip(".")
                names |= {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
            if isinstance(node, ast.Attribute):
                dotted = ast.unparse(node)
                if re.fullmatch(r"torch(\.\w+)+", dotted):
                    names.add(dotted.removeprefix("torch."))
    # torch.nn.functional is seen as torch.nn, too; a type's attribute as the type.
    return {n for n in names if not any(o.startswith(f"{n}.") for o in names)}


def test_no_name_is_newer_than_the_oldest_torch():
    assert not used_names() - KNOWN


def test_what_is_newer_is_guarded():
    for name, file in NEWER.items():
        text = (ROOT / "tinyr1" / file).read_text()
        assert f'if "{name}" in names' in text


def test_the_oldest_torch_is_the_one_that_the_package_asks_for():
    assert '"torch>=2.11"' in (ROOT / "pyproject.toml").read_text()

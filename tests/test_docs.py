"""The documents: links lead somewhere, names are those of the code, commands run."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import reading_list

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_files(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [n for n in links if "://" not in n and not (page.parent / n).exists()]
    named = re.findall(r"`([\w/]+\.(?:py|toml))(?:::?\w+)?`", text)
    known = [
        p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if p.suffix in (".py", ".toml")
    ]
    # A page may shorten tinyr1/data/clean.py to data/clean.py, and a changelog may name old files.
    if page.name not in ("CHANGELOG.md", "log.md"):
        missing += [n for n in named if not any(f"/{k}".endswith(f"/{n}") for k in known)]
    assert not missing


BOOK = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/tour.md",
    "docs/paper_map.md",
    "docs/formats.md",
    "docs/your_model.md",
]
CODE = [*ROOT.glob("*.py"), *(ROOT / "tinyr1").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]


@pytest.mark.parametrize("page", BOOK)
def test_backticked_names_resolve(page):
    """`file.function`, `file.Class` and folders are there, single words stand in the code."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    words = {word for path in CODE for word in re.findall(r"\w+", path.read_text())}
    missing = []
    for name in re.findall(r"`([^`\n]+)`", text):
        if match := re.fullmatch(r"([\w/]+)\.([A-Za-z_]\w+)(?:\(\))?", name):
            files = list((ROOT / "tinyr1").rglob(f"{match[1]}.py"))
            is_file = match[2] in ("py", "html", "jsonl", "json", "png", "md")
            if files and not is_file and not any(_defines(f, match[2]) for f in files):
                missing.append(name)
        elif re.fullmatch(r"[\w/]+/", name):
            missing += (
                [] if any((ROOT / top / name).is_dir() for top in (".", "tinyr1")) else [name]
            )
        elif match := re.fullmatch(r"([A-Za-z_]\w+)(?:\(\))?", name):
            missing += [] if match[1] in words else [name]
    assert not missing


def _defines(file, name):
    return re.search(rf"^\s*(?:def |class )?{name}\b", file.read_text(), re.MULTILINE)


def test_the_reading_list_is_that_of_the_script():
    """Its line counts are those of the day on which the script ran."""
    expected, page = (
        re.sub(r"\d[\d,]*", "#", text)
        for text in (reading_list.table(), (ROOT / "README.md").read_text())
    )
    assert expected in page, "run python docs/reading_list.py"


def commands():
    """Commands of the pages that work on runs/, which a CPU can do, in order."""
    found = []
    for name in ("README.md", "docs/reproduce_32b.md", "docs/tour.md", "docs/your_model.md"):
        for line in (ROOT / name).read_text().splitlines():
            line = line.strip() if line.startswith("    ") else ""
            # The laboratory is run beforehand, at its smallest.
            if " runs/" in line and "&&" not in line and "--out runs/lab" not in line:
                found.append(line)
    return found


@pytest.mark.slow
def test_commands_of_the_pages(tmp_path):
    """Typed as they stand, the laboratory with --quick; in one folder, in order."""
    for script in ("train.py", "merge.py", "evaluate.py", "docs"):
        (tmp_path / script).symlink_to(ROOT / script)
    lab = "python -m tinyr1.lab --out runs/lab --quick"
    assert any("tinyr1.lab --out runs/lab" in page.read_text() for page in PAGES)
    for line in [lab, *commands()]:
        words = shlex.split(line, comments=True)
        if words[0] == "torchrun":
            words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        else:
            words[0] = sys.executable
        if words[1] == "docs/figures.py":
            words += ["--out", str(tmp_path / "figures")]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=600)
        print(line, done.stdout[-500:], done.stderr[-2000:], sep="\n")
        assert done.returncode == 0, line

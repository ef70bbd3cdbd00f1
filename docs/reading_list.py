"""The core reading path with its line counts, as README.md has it: run to bring it up to date."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- docs/reading_list.py writes from here -->", "<!-- to here -->"
CORE = {
    "nano.py": "the paper in one file; torch and the standard library only",
    "record.py": "the types that flow through everything, each checked when made",
    "thinking.py": "the thought format: joined, checked, taken off",
    "model/chat.py": "conversations as token ids, and which of them are targets",
    "model/qwen2.py": "Qwen2, complete, with no rank in it",
    "model/loss.py": "cross-entropy in chunks, on target rows only",
    "train/packing.py": "best-fit-decreasing packs, documents isolated from each other",
    "train/parallel.py": "FSDP2, applied from outside",
    "train/sft.py": "from `train()` straight down to the training step",
    "merge/fusion.py": "Arcee Fusion, beside its equations",
    "merge/run.py": "merging checkpoints tensor by tensor, in bounded memory",
    "sampling/engine.py": "continuous batching, samples that depend on nothing but their seed",
    "graders/grading.py": "what counts as a right answer",
    "evaluate/tasks.py": "the prompts of three protocols, to the byte",
    "evaluate/stats.py": "pass@1 with its two standard errors",
}


def line_count(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def core_lines() -> int:
    return sum(line_count(ROOT / "tinyr1" / name) for name in CORE)


def table() -> str:
    """The Markdown table of README.md."""
    rows = [
        f"| {i} | [`{name}`](tinyr1/{name}) | {line_count(ROOT / 'tinyr1' / name)} | {what} |"
        for i, (name, what) in enumerate(CORE.items(), 1)
    ]
    files = [*(ROOT / "tinyr1").rglob("*.py")]
    total = sum(map(line_count, files))
    last = (
        f"Together {core_lines():,} lines; the whole package has {total:,} in {len(files)} files."
    )
    return "\n".join(["| | file | lines | what it is |", "|---:|---|---:|---|", *rows, "", last])


def main() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{table()}\n\n{END}{after}", encoding="utf-8")
    print(f"{core_lines():,} lines in the core")


if __name__ == "__main__":
    main()

"""Where a checkpoint lies, and what to do about a place that holds none we read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tinyr1.common.errors import UserError
from tinyr1.common.files import real

# What is not of the model itself: weights, what lists them, adapters, and what runs leave behind.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ckpt")
_OURS = {"README.md", "merge_report.json", "merge.png", "train_config.json", "metrics.jsonl"}
_OURS |= {"loss.png", "trainer_state.json", "config.json"}  # the last is written anew
_FOLDERS = {"checkpoints", "exports", "cache", "tensorboard", "onnx", "original"}
LARGEST = 200 << 20  # bytes of a file that goes along: tokenizers have tens of megabytes
_CONVERTS = (
    'python -c "import sys, transformers as t; '
    "t.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='auto')"
    '.save_pretrained(sys.argv[2])"'
)


def located(path: Path) -> Path:
    """The directory of a checkpoint: of a set in the hub's cache, its one snapshot.

    UserError where there are several.
    """
    snapshots = path / "snapshots"
    if not path.name.startswith("models--") or not snapshots.is_dir():
        return path
    found = sorted(folder for folder in snapshots.iterdir() if folder.is_dir())
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(folder) for folder in found) or "none"
    raise UserError(f"{path}: the hub's cache of a model with {len(found)} snapshots: {names}")


def model_name(folder: Path) -> str:
    """What a checkpoint is called: `owner/name` where it lies in the hub's cache, else its folder.

    A snapshot there lies in models--owner--name/snapshots/COMMIT.
    """
    folder = real(folder)
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def check_directory(path: Path) -> None:
    """UserError for what is no directory; it says what it may be instead."""
    if path.is_dir():
        return
    if path.suffix in (".yaml", ".yml") and path.is_file():
        raise UserError(f"{path}: {_of_mergekit(path)}")
    if path.suffix == ".gguf":
        raise UserError(f"{path}: GGUF is not read; download the model's safetensors")
    if path.is_file():
        raise UserError(f"{path}: a file; expected the directory of a Hugging Face checkpoint")
    hint = ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        hint = f"; if it is a model on the hub: hf download {path} --local-dir {path.name}"
    raise UserError(f"{path}: no such directory; expected a Hugging Face checkpoint{hint}")


def _of_mergekit(path: Path) -> str:
    """What a mergekit configuration means as options, where that is plain."""
    text = path.read_text(errors="replace")
    methods = re.findall(r"^merge_method:\s*(\w+)", text, re.MULTILINE)
    models = re.findall(r"^\s*-\s*model:\s*(\S+)", text, re.MULTILINE)
    base = re.findall(r"^base_model:\s*(\S+)", text, re.MULTILINE)
    if len(methods) != 1 or not models or re.search(r"\b(slices|layer_range|modules)\b", text):
        return "a mergekit configuration is not read: give directories and options instead"
    known = f" --base {base[0]}" if base and base[0] not in models else ""
    if methods[0] == "arcee_fusion" and base and base[0] in models:
        models.sort(key=lambda model: model != base[0])  # its base is Left
        known = ""
    words = f"merge.py {' '.join(models)} OUT --method {methods[0]}{known}"
    return f"a mergekit configuration is not read; its like here: {words} (and its parameters)"


def why_no_weights(path: Path, index: str) -> str:
    """What a directory without safetensors has, and what to do about it."""
    names = {file.name for file in path.iterdir()}
    if "adapter_config.json" in names:
        return "a LoRA adapter, no model: merge it into its base first (peft's merge_and_unload)"
    if "consolidated.safetensors" in names:
        return "has consolidated.safetensors only; download the model-*.safetensors beside it"
    if any(name.startswith("pytorch_model") for name in names):
        return f"has pytorch_model.bin only; {_CONVERTS} {path} OTHER writes safetensors"
    if any(name.endswith(".gguf") for name in names):
        return "has GGUF only, which is not read; download the model's safetensors"
    return f"neither model.safetensors nor {index} in it"


def side_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files that belong to a model besides its weights: those to copy, and those too large to."""
    found, large = list[Path](), list[Path]()
    for file in sorted(_below(folder)):
        at = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in at.parts)
        is_run = at.parts[0] in _FOLDERS or at.parts[0].startswith("checkpoint-")
        is_weight = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        is_adapter = file.name.startswith("adapter_")
        is_ours = len(at.parts) == 1 and at.name in _OURS
        if not (hidden or is_run or is_weight or is_adapter or is_ours):
            (found if file.stat().st_size <= LARGEST else large).append(at)
    return found, large


def _below(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())

"""A merge before any work: the models, and everything that is wrong with them.

MergeConfig (the command line) -> Merge, or one UserError that lists every fault
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tinyr1.common.by_name import ByName, words_of
from tinyr1.common.config import flag
from tinyr1.common.errors import UserError
from tinyr1.common.files import hash_json, read_object, real
from tinyr1.common.log import Log, counted
from tinyr1.common.ranks import Ranks
from tinyr1.common.threads import core_count
from tinyr1.merge.configs import config_differences, side_differences
from tinyr1.merge.fusion import COPIES
from tinyr1.merge.methods import METHODS
from tinyr1.merge.options import MergeConfig, check_options
from tinyr1.merge.padding import padding_faults, shared_rows
from tinyr1.model.places import model_name
from tinyr1.model.rows import CHUNK_ELEMENTS, row_parts
from tinyr1.model.weights import DTYPES, Checkpoint, dtype_name

MAX_THREADS = 8  # by default; more share the memory system and the interpreter
RESIDENT_BYTES = 400 * 10**6  # torch, what is mapped of the inputs, what quartiles collect


class Merge:
    """A checked merge: its models, its options, and what the output will hold."""

    def __init__(self, config: MergeConfig, ranks: Ranks = Ranks()) -> None:  # noqa: B008
        self.config = config
        self.ranks = ranks
        on_gpu = config.device == "cuda"
        self.device = torch.device("cuda", ranks.local_rank) if on_gpu else torch.device("cpu")
        *inputs, out = config.paths or (Path(),)
        self.out = Path(os.path.realpath(out))  # "." has no name to write beside, a link no place
        check_options(config, len(inputs))
        paths = [*inputs, *config.then, *([config.base] if config.base else [])]
        _check_out(self.out, paths)
        opened = _opened(paths)
        self.models = [opened[path] for path in inputs]
        self.then = [opened[path] for path in config.then]
        self.base = opened[config.base] if config.base else None
        self.config_changes = _drop_what_others_lack(self.inputs)
        # The last Left is the one whose files, names and dtypes the output has.
        self.left = self.then[-1] if self.then else self.models[0]
        # Of tensors whose last rows are padding, not as many in each model: those that all have.
        self.shared_rows = shared_rows(self.left, self.inputs)
        self.method = METHODS[config.method]
        self.params = self.method.resolve(config.params)
        dtype = DTYPES[config.dtype] if config.dtype else None
        self.specs = {
            name: spec._replace(dtype=dtype) if dtype and spec.is_floating else spec
            for name, spec in self.left.specs.items()
        }
        self.check()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of what is merged: a tensor's own, but for rows of padding."""
        shape = self.specs[name].shape
        return (self.shared_rows[name], *shape[1:]) if name in self.shared_rows else shape

    def wants(self, name: str) -> bool:
        """True for a tensor that is merged; the others are copies of Left's."""
        c = self.config
        is_named = not c.only or any(re.search(pattern, name) for pattern in c.only)
        return is_named and not any(re.search(pattern, name) for pattern in c.except_)

    @property
    def partial(self) -> Path:
        """The folder in which everything is written until it is whole."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def streams(self) -> bool:
        """True where tensors are merged some rows at a time, so that their size does not matter."""
        if self.config.method == "arcee_fusion":
            return self.params.arithmetic == "exact"
        return self.method.elementwise

    @property
    def thread_count(self) -> int:
        """Tensors merged at a time, each on one core; by default whole ones go one by one."""
        if self.config.device == "cuda":
            return 1
        own_cores = max(1, core_count() // self.ranks.local_world_size)
        return self.config.threads or (min(MAX_THREADS, own_cores) if self.streams else 1)

    @property
    def memory_bytes(self) -> int:
        """Resident memory that will not be exceeded."""
        if not self.streams:
            return RESIDENT_BYTES + self.copies * self.largest_bytes
        # A row is never cut. A chunk of rows has two buffers in each merge of a chain, and more in
        # passing; a row that goes by the closed form is whole in float64, a dozen times.
        row = 4 * max(spec.shape[-1] if spec.shape else 1 for spec in self.specs.values())
        # Counted from the code and checked against measured peaks (docs/benchmarks/merge.md).
        chunks = (10 + 4 * len(self.then)) * max(4 * CHUNK_ELEMENTS, row)
        return RESIDENT_BYTES + self.thread_count * (chunks + 28 * row)

    @property
    def copies(self) -> int:
        """Number of float32 copies of a tensor, where whole tensors are held."""
        if self.config.method == "arcee_fusion":
            return COPIES[self.params.arithmetic]
        return self.method.copies(len(self.models))

    @property
    def largest_bytes(self) -> int:
        """Bytes of the tensors that are at work at once, in float32."""
        sizes = sorted((4 * spec.element_count for spec in self.specs.values()), reverse=True)
        return sum(sizes[: self.thread_count])

    @property
    def layout(self) -> dict[str, str] | None:
        """Left's shard of each tensor, or None for shards of --shard-size."""
        return self.left.shards if self.config.shard_size is None else None

    @property
    def shard_bytes(self) -> int:
        return int((self.config.shard_size or 5) * 1e9)

    @property
    def inputs(self) -> list[Checkpoint]:
        return [*self.models, *self.then, *([self.base] if self.base else [])]

    @property
    def output_bytes(self) -> int:
        return sum(spec.byte_count for spec in self.specs.values())

    def check(self) -> None:
        """UserError listing all that is wrong with the models and with the place of the output."""
        faults = [f"{m.path}: no tensors in it" for m in self.inputs if not m.specs]
        mine = _config(self.left)
        for other in self.inputs:
            kinds = [n for n, spec in other.specs.items() if not spec.is_floating]
            kinds = [name for name in kinds if self.wants(name)]
            if other.unsupported or any(not self._same_bytes(other, name) for name in kinds):
                faults += [f"{other.path}: {line}" for line in other.dtype_faults()]
            if other is self.left:
                continue
            faults += differences(
                self.left, other, lambda name: self.wants(name) and name not in self.shared_rows
            )
            theirs = _config(other)
            for _, text, breaks in sorted(config_differences(mine, theirs)):
                if breaks and not self.config.allow_differences:
                    faults.append(f"{other.path}: {text}; --allow-differences takes Left's")
        faults += padding_faults(self.left, self.inputs, self.config.allow_padding)
        for option, pattern in self._patterns():
            if not any(re.search(pattern, name) for name in self.specs):
                faults.append(f"{option}: {pattern}: found in no tensor's name")
        if not any(map(self.wants, self.specs)):
            faults.append("--only, --except: no tensor is left to merge")
        place = self._place_faults() if self.ranks.is_main else []
        if faults:
            raise UserError("the models do not fit together:\n  " + "\n  ".join(faults + place))
        if place:
            raise UserError("\n  ".join(place))

    def _patterns(self) -> Iterator[tuple[str, str]]:
        """Every regular expression of the options, with its option."""
        yield from (("--only", pattern) for pattern in self.config.only)
        yield from (("--except", pattern) for pattern in self.config.except_)
        for name in self.method.options:
            value = getattr(self.params, name)
            if isinstance(value, ByName):
                yield from ((flag(name), pattern) for pattern, _ in value.rules)

    def _same_bytes(self, other: Checkpoint, name: str) -> bool:
        """True where a tensor that is no weight (positions, masks) is the same as Left's."""
        spec = other.specs[name]
        if self.left.specs.get(name) != spec:
            return False
        with self.left.mapped(name) as a, other.mapped(name) as b:
            return all(torch.equal(a[part], b[part]) for part in row_parts(spec.shape))

    def _place_faults(self) -> list[str]:
        """List the faults of OUT and of the disk that it is on."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            return [f"OUT={self.out}: not an empty directory; choose another place or remove it"]
        there = sum(f.stat().st_blocks * 512 for f in self.partial.glob("*.safetensors*"))
        needed = self.output_bytes - there
        free = shutil.disk_usage(_existing_parent(self.out)).free
        if free < needed:
            return [f"OUT={self.out}: {needed:,} bytes needed, {free:,} free on that disk"]
        return []

    def identity(self) -> dict[str, Any]:
        """Inputs and options: what the output depends on, without paths and times."""
        c, params = self.config, self.params
        is_fusion = c.method == "arcee_fusion"
        apart = ("arithmetic", "quantiles")  # they stand beside the options
        options = {name: getattr(params, name) for name in self.method.options if name not in apart}
        roles = [(f"model {i}", m) for i, m in enumerate(self.models)]
        roles += [(f"then {i}", m) for i, m in enumerate(self.then)]
        roles += [("base", self.base)] if self.base else []
        return {
            "method": c.method,
            "arithmetic": params.arithmetic if is_fusion else None,
            "quantiles": params.quantiles if is_fusion else None,
            "options": {name: _plain(value) for name, value in options.items()},
            "dtype": c.dtype,
            "device": c.device,
            "seed": c.seed,
            "allow_nonfinite": c.allow_nonfinite,
            "allow_differences": c.allow_differences,
            "allow_padding": c.allow_padding,
            "only": list(c.only),
            "except": list(c.except_),
            "shared_rows": self.shared_rows,
            "left_out": sorted({name for model in self.inputs for name in model.dropped}),
            "inputs": [_identity(role, model) for role, model in roles],
        }


def _plain(value: Any) -> Any:
    """An option's value for JSON; of one by tensor name the words that were typed."""
    if isinstance(value, ByName):
        return words_of(value)
    return list(value) if isinstance(value, tuple) else value


def _identity(role: str, model: Checkpoint) -> dict[str, Any]:
    headers = {n: [list(s.shape), str(s.dtype), model.shards[n]] for n, s in model.specs.items()}
    return {
        "role": role,
        "name": model_name(model.path),
        "tensors": len(model.specs),
        "bytes": sum(spec.byte_count for spec in model.specs.values()),
        "headers_sha256": hash_json(headers),
        "fingerprint": model.fingerprint(),
    }


def _opened(paths: Sequence[Path]) -> dict[Path, Checkpoint]:
    """The checkpoints; UserError naming every one that cannot be read."""
    opened: dict[Path, Checkpoint] = {}
    faults: list[str] = []
    for path in dict.fromkeys(paths):
        try:
            opened[path] = Checkpoint(path)
            config = _config(opened[path])
            if quantized := config.get("quantization_config"):
                how = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
                raise UserError(
                    f"{path}: quantised ({how}): there is nothing to merge in its numbers; "
                    "download the model that it was made from"
                )
            if config.get("tie_word_embeddings") is True:
                opened[path].drop_spare_head()
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n  ".join(faults))
    return opened


# Tables that are computed anew when a model is loaded, kept by some releases and not by others.
_BUFFERS = re.compile(r".*\b(inv_freq|position_ids|masked_bias)")


def _drop_what_others_lack(models: Sequence[Checkpoint]) -> dict[str, Any]:
    """Leave out copies of embeddings and computed tables that not all models have.

    Returns what then has to be said in the output's config.json.
    """
    changes: dict[str, Any] = {}
    for model in models:
        lacking = {n for n in model.specs if any(n not in other.specs for other in models)}
        for name in lacking:
            if _BUFFERS.fullmatch(name):
                model.drop(name, "a table that is computed anew, which not all models have")
            elif name.endswith("lm_head.weight") and _is_copy(model, name):
                model.drop(name, "a copy of the embedding, which not all models have")
                changes["tie_word_embeddings"] = True
    return changes


def _is_copy(model: Checkpoint, head: str) -> bool:
    """True for a head whose bytes are those of an embedding; never where the config denies it."""
    if _config(model).get("tie_word_embeddings") is False:
        return False
    embeddings = [name for name in model.specs if name.endswith("embed_tokens.weight")]
    return any(model.same_bytes(head, name) for name in embeddings)


def _config(model: Checkpoint) -> dict[str, Any]:
    return read_object(model.path / "config.json")


def differences(
    left: Checkpoint, other: Checkpoint, wants: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """One line for each tensor that is missing, unexpected or of another shape in `other`.

    Only of those that are wanted.
    """
    faults = [
        f"{other.path}: {n}: missing" for n in left.specs if n not in other.specs and wants(n)
    ]
    for name, spec in other.specs.items():
        if not wants(name):
            continue
        if name not in left.specs:
            faults.append(f"{other.path}: {name}: not in {left.path}")
        elif spec.shape != left.specs[name].shape:
            wanted = list(left.specs[name].shape)
            faults.append(f"{other.path}: {name}: shape {list(spec.shape)}, Left has {wanted}")
    return faults


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    if not out.name:
        raise UserError(f"OUT={out}: expected a directory that can be made")
    for path in inputs:
        for place in (out, out.with_name(out.name + ".partial")):
            if real(path) in (place, *place.parents):
                raise UserError(
                    f"OUT={out}: {place} lies in the input {path}; choose another place"
                )


def _existing_parent(path: Path) -> Path:
    path = real(path)
    while not path.exists():
        path = path.parent
    return path


def main_dtype(merge: Merge) -> torch.dtype:
    """The dtype of most bytes, which config.json names."""
    sizes: dict[torch.dtype, int] = {}
    for spec in merge.specs.values():
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.byte_count
    return max(sizes, key=lambda dtype: sizes[dtype])


def plan_lines(merge: Merge) -> list[str]:
    """Describe the merge for people."""
    names = " + ".join(model_name(m.path) for m in merge.models)
    left = model_name(merge.left.path)
    lines = [f"method: {merge.config.method} of {names}"]
    lines += [f"then: Left {model_name(m.path)}" for m in merge.then]
    shards = len(set((merge.layout or {}).values()))
    kept = f"{counted(shards, 'shard')} named as {left}'s" if shards else "new shards"
    lines.append(
        f"output: {len(merge.specs)} tensors, {merge.output_bytes:,} bytes, "
        f"{dtype_name(main_dtype(merge))}, {kept}; other files from {left}"
    )
    dropped = {name: why for model in merge.inputs for name, why in model.dropped.items()}
    lines += [f"left out: {name}, {why}" for name, why in sorted(dropped.items())]
    for name, rows in merge.shared_rows.items():
        mine = merge.specs[name].shape[0]
        rest = f"; Left's {mine - rows:,} of padding follow" if mine > rows else ""
        lines.append(f"padding: {name}: the {rows:,} rows that all have are merged{rest}")
    if copied := sum(not merge.wants(name) for name in merge.specs):
        lines.append(f"not merged: {counted(copied, 'tensor')} of {left}")
    held = f"{counted(merge.thread_count, 'thread')}, streamed"
    if not merge.streams:
        of = "tensor" if merge.thread_count == 1 else f"{merge.thread_count} tensors"
        held = (
            f"{merge.copies} copies of the largest {of}, {merge.largest_bytes:,} bytes in float32"
        )
    lines.append(f"memory: below {merge.memory_bytes / 1e6:,.0f} MB ({held})")
    return lines


def warn_differences(merge: Merge, log: Log) -> None:
    """Warn where files that belong to a model, or its settings, are not Left's: a line for each."""
    mine = _config(merge.left)
    for note in (note for model in merge.inputs for note in model.notes):
        log.warn(note)
    for other in merge.inputs:
        if other is merge.left:
            continue
        texts = [text for _, text, _ in sorted(config_differences(mine, _config(other)))]
        texts += side_differences(merge.left.path, other.path)
        both = [n for n in merge.left.specs if n in other.specs and merge.wants(n)]
        rounded = sum(other.specs[n].dtype != merge.left.specs[n].dtype for n in both)
        if rounded and merge.config.method == "arcee_fusion":
            texts.append(f"{rounded} tensors are rounded to Left's dtype first")
        for text in texts:
            log.warn(f"{other.path}: {text}")

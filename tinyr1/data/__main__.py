"""Make and look at training files.

    python -m tinyr1.data math    --source open-r1/OpenR1-Math-220k --out math.jsonl
    python -m tinyr1.data coding  --source DIR_OF_PARQUET --out coding.jsonl
    python -m tinyr1.data science --source FILE.parquet --out science.jsonl --questions-only
    python -m tinyr1.data inspect math.jsonl --tokenizer DIR

A source is a .parquet or .jsonl file, a folder of them, or a name on the hub; the schema is known
by its columns.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1.common import plot
from tinyr1.common.config import check_range, given, parse, to_json
from tinyr1.common.errors import UserError, run_main
from tinyr1.common.files import hash_files
from tinyr1.common.log import Log
from tinyr1.data import coding, math, science
from tinyr1.data.clean import Draft
from tinyr1.data.compare import Comparison, Contamination, NearDuplicates
from tinyr1.data.pipeline import Steps, build, check_file, is_right
from tinyr1.data.sources import is_output, open_sources
from tinyr1.graders.sandbox import Level, open_sandbox
from tinyr1.model.chat import TemplateName, guess_template, marked, render
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Domain, Message

FAULTS = 20  # broken lines that inspect prints


@dataclass(frozen=True)
class DataOptions:
    """The options of any branch's training file."""

    source: tuple[str, ...] = ()
    """Files, folders of one schema, or hub names."""
    hub_config: str | None = None
    """Configuration of a hub set (default, metadata, extended, ...)."""
    revision: str | None = None
    """Branch, tag or commit of a hub set (none: its newest)."""
    out: Path | None = None
    """The training file to write (.jsonl)."""
    tokenizer: Path | None = None
    """Checkpoint directory whose tokenizer counts tokens, for --max-tokens."""
    max_tokens: int = 16384
    """Longer conversations are dropped (needs --tokenizer)."""
    decontaminate: tuple[Path, ...] = ()
    """Task files whose questions must not be trained on: eight words in a row, or the same."""
    near_duplicates: float | None = None
    """Drop questions whose five-word pieces overlap so much with an earlier one's (0.8, say)."""
    deduplicate: bool = True
    """Drop questions that came before, but for case, ends of sentences and spacing."""
    verify: bool = False
    """Grade each answer with this project's graders and drop wrong ones."""
    sandbox: Level = "namespaces"
    """Isolation of programs that --verify runs."""
    limit: int | None = None
    """Read only so many rows."""
    quiet: bool = False
    """No progress on standard error."""

    domain: ClassVar[Domain]
    paper: ClassVar[str]  # what section 2.1 says of the numbers

    def __post_init__(self) -> None:
        check_range(self, 1, inf, "max_tokens", "limit")
        check_range(self, 0.05, 1, "near_duplicates")
        if self.max_tokens != DataOptions.max_tokens and not self.tokenizer:
            raise UserError(f"--max-tokens={self.max_tokens}: needs --tokenizer to count them")

    def convert(self, row: dict[str, Any]) -> Draft | list[Draft]:
        """A published row as a draft, or as several of which one is used; raises Dropped."""
        raise AssertionError("each branch has its own")

    @property
    def asks_teacher(self) -> bool:
        """True where the file will hold questions and no answers."""
        return False


@dataclass(frozen=True)
class MathOptions(DataOptions):
    """Make the math branch's training file, from OpenR1-Math-220k."""

    question_types: tuple[str, ...] = ("math-word-problem",)
    """Values of question_type that are kept (none: all)."""
    sources: tuple[str, ...] = ()
    """Values of source that are kept (none: all)."""
    require_verified: bool = True
    """Only generations that correctness_math_verify or correctness_llama marks true; without it
    these come first."""
    prefer: math.Prefer = "first"
    """Which is tried first of several usable generations; one that fails a check costs nothing."""

    domain = "math"
    paper = "the paper kept 58k of OpenR1-Math-220k's 94k; by which values it does not say"

    def convert(self, row: dict[str, Any]) -> list[Draft]:
        return math.candidates(
            row, self.question_types, self.sources, self.require_verified, self.prefer
        )


@dataclass(frozen=True)
class CodingOptions(DataOptions):
    """Make the coding branch's training file, from OpenThoughts-114k."""

    domain = "coding"
    paper = "the paper has 20k; OpenThoughts-114k holds 19,904 programs"

    def convert(self, row: dict[str, Any]) -> Draft:
        return coding.convert(row)


@dataclass(frozen=True)
class ScienceOptions(DataOptions):
    """Make the science branch's training file, or its questions for the teacher."""

    cot_types: tuple[str, ...] = science.S1_TYPES
    """Values of s1's cot_type that are kept (none: all, as for s1K)."""
    questions_only: bool = False
    """Questions for the teacher, even where R1's answer is there."""

    domain = "science"
    paper = "the paper has 8.6k: 2.7k of s1's 59K, 1.0k of s1K, 4.9k of OpenThoughts"

    def convert(self, row: dict[str, Any]) -> Draft:
        return science.convert(row, self.cot_types, self.questions_only)

    @property
    def asks_teacher(self) -> bool:
        return self.questions_only


@dataclass(frozen=True)
class InspectOptions:
    """Check a training file line by line and show what is in it."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The training file."""
    tokenizer: Path | None = None
    """Checkpoint directory: counts tokens and shows which are targets."""
    examples: int = 2
    """Records to print (with --tokenizer)."""
    quiet: bool = False
    """No progress on standard error."""


Command = (
    Annotated[MathOptions, tyro.conf.subcommand("math")]
    | Annotated[CodingOptions, tyro.conf.subcommand("coding")]
    | Annotated[ScienceOptions, tyro.conf.subcommand("science")]
    | Annotated[InspectOptions, tyro.conf.subcommand("inspect")]
)


def counter(folder: Path) -> Callable[[Draft], int]:
    """Tokens of a draft after templating."""
    tokenizer = Tokenizer(folder)
    template: TemplateName = guess_template(tokenizer)

    def count(draft: Draft) -> int:
        turns = (Message("user", draft.question.strip()), Message("assistant", draft.content()))
        return len(render(tokenizer, turns, template).tokens)

    return count


def make(c: DataOptions) -> None:
    """Build --out, print the waterfall."""
    names = given(c.source, "--source")
    out = given(c.out, "--out")
    log = Log(c.quiet)
    if out.suffix != ".jsonl" or out.is_dir():
        raise UserError(f"--out={out}: expected the name of a .jsonl file")
    for path in c.decontaminate:
        if is_output(path, out):
            raise UserError(f"--decontaminate={path}: --out={out} would write it; choose another")
    sources = open_sources(names, out, c.hub_config, c.revision)
    if (c.hub_config or c.revision) and not any(source.is_hub for source in sources):
        name = "--hub-config" if c.hub_config else "--revision"
        raise UserError(f"{name}: of a set on the hub, and --source names local files")
    if not c.tokenizer and not c.asks_teacher:
        log.warn("--tokenizer was not given: conversations of any length are kept")
    if not c.decontaminate:
        log.warn(
            "--decontaminate was not given: test questions stay in (s1's science seeds hold GPQA's)"
        )
    if c.verify and c.domain == "coding":
        open_sandbox(c.sandbox)
    steps = Steps(
        verify=functools.partial(is_right, sandbox=c.sandbox) if c.verify else None,
        token_count=counter(c.tokenizer) if c.tokenizer else None,
        max_tokens=c.max_tokens,
        comparison=Comparison(
            c.deduplicate,
            NearDuplicates(c.near_duplicates) if c.near_duplicates else None,
            Contamination(c.decontaminate) if c.decontaminate else None,
        ),
    )

    options = {k: v for k, v in to_json(c).items() if k not in ("source", "out", "quiet")}
    options["tokenizer"] = c.tokenizer.name if c.tokenizer else None
    options["decontaminate"] = [path.name for path in c.decontaminate]
    about = {
        "domain": c.domain,
        "sources": [source.identity() for source in sources],
        "options": options,
        "decontaminate_sha256": hash_files(list(c.decontaminate)),
    }
    rows = itertools.chain.from_iterable(source.rows() for source in sources)
    rows = itertools.islice(rows, c.limit)
    counts = build(rows, c.convert, out, steps, about, log)
    for line in counts.lines():
        print(line)
    if c.verify and counts.unverified:
        print(f"  of these {counts.unverified:,} had nothing to be verified by")
    print(c.paper)
    if not counts.rows_out:
        hint = "; --questions-only is for the teacher" if "no_trajectory" in counts.dropped else ""
        beside = out.with_suffix(".partial") / "rejected.jsonl"  # where FILE has stayed as it was
        reasons = beside if beside.exists() else out.with_suffix(".rejected.jsonl")
        raise UserError(f"{out}: no row is left; see {reasons}{hint}")


def inspect(c: InspectOptions) -> None:
    """Check every line; print counts, lengths and a few records."""
    path = c.file
    log = Log(c.quiet)
    tokenizer = Tokenizer(c.tokenizer) if c.tokenizer else None
    template: TemplateName = guess_template(tokenizer) if tokenizer else "deepseek_r1"
    domains, sources, ids = Counter[str](), Counter[str](), Counter[str]()
    lengths: list[int] = []
    shown: list[str] = []
    faults: list[str] = []
    for number, record in log.bar(check_file(path), desc="checking", unit="row"):
        try:
            if isinstance(record, ValueError):
                raise record
            example = render(tokenizer, record.messages, template) if tokenizer else None
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
            continue
        domains[record.domain] += 1
        sources[record.source] += 1
        ids[record.id] += 1
        if example is None or tokenizer is None:
            lengths.append(sum(len(m.content) for m in record.messages))
            continue
        lengths.append(len(example.tokens))
        if len(shown) < c.examples:
            text = marked(tokenizer, example)
            shown.append(f"--- {record.id}: targets between >> and <<\n{text}")
    if faults:
        print(*faults[:FAULTS], sep="\n", file=sys.stderr)
        raise UserError(f"{path}: {len(faults):,} of its lines break the contract of the file")
    if not lengths:
        raise UserError(f"{path}: no rows")
    unit = "tokens" if tokenizer else "characters"
    # Nearest ranks: each is the length of one of the records.
    low, middle, high = np.percentile(lengths, (5, 50, 95), method="inverted_cdf")
    print(f"{len(lengths):,} records, all well-formed")
    print(f"domains: {dict(domains)}")
    for source, count in sources.most_common(10):
        print(f"  {count:>9,}  {source}")
    if twice := [name for name, count in ids.items() if count > 1]:
        print(f"warning: {len(twice):,} ids appear more than once ({twice[0]!r}, ...)")
    print(
        f"{unit}: 5 % below {low:,}, half below {middle:,}, 95 % below {high:,}, "
        f"longest {max(lengths):,}, mean {fmean(lengths):,.0f}, in all {sum(lengths):,}"
    )
    picture = path.with_suffix(".lengths.png")
    if plot.drawn(plot.histogram, picture, lengths, unit, path.name):
        print(f"histogram: {picture}")
    for text in shown:
        print(text)


def main() -> None:
    command = parse(
        Command,
        sys.argv[1:],
        prog="python -m tinyr1.data",
        description="Make and look at training files.",
    )
    if isinstance(command, InspectOptions):
        inspect(command)
    else:
        make(command)


if __name__ == "__main__":
    run_main(main)

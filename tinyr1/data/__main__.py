"""Make and look at training files.

    python -m tinyr1.data math    --source open-r1/OpenR1-Math-220k --out math.jsonl
    python -m tinyr1.data coding  --source DIR_OF_PARQUET --out coding.jsonl
    python -m tinyr1.data science --source FILE.parquet --out science.jsonl --questions-only
    python -m tinyr1.data math    --source mine.jsonl --columns question=q answer=text --out m.jsonl
    python -m tinyr1.data inspect math.jsonl --tokenizer DIR

A source is a file (.jsonl, .json, .csv, .parquet, .arrow, packed .jsonl.gz and .jsonl.zst), a
folder of them, one that `save_to_disk` wrote, or a name on the hub; what set it is, is known by its
columns. Conversations of your own are messages, ShareGPT's conversations, Alpaca's instruction and
output, a question and its answer, or what --columns names.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar

import numpy as np
import tyro

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1 import thinking
from tinyr1.common import plot
from tinyr1.common.command_line import Groups
from tinyr1.common.config import check_given, check_range, flag, given, parse_command, to_json
from tinyr1.common.errors import UserError, run_main
from tinyr1.common.files import hash_files
from tinyr1.common.log import Log
from tinyr1.data.clean import LEAKS, MARKERS, kept_names, kept_reasons
from tinyr1.data.compare import Comparison, Contamination, NearDuplicates
from tinyr1.data.draft import S1_TYPES, Draft, Dropped, Prefer, Selection
from tinyr1.data.pipeline import Convert, Steps, build, record_of
from tinyr1.data.schemas import columns_of, drafts_by_columns, drafts_of
from tinyr1.data.sources import Place, is_output, open_sources
from tinyr1.data.verify import is_right
from tinyr1.graders.sandbox import Level, open_sandbox
from tinyr1.model.chat import TemplateName, guess_template, marked, render
from tinyr1.model.records import read_records
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Domain, Record

FAULTS = 20  # broken lines that inspect prints


GROUPS: Groups = {
    "rows and output": "source out hub_config revision split columns limit",
    "what is kept": "sources questions_only require_think generations all_generations keep "
    "deduplicate near_duplicates",
    "answers": "verify sandbox tokenizer max_tokens",
    "test questions": "decontaminate ngram overlap",
    "progress": "quiet",
}


@dataclass(frozen=True)
class DataOptions:
    """The options of any branch's training file."""

    source: tuple[str, ...] = ()
    """Required. Files, folders, or hub names."""
    hub_config: str | None = None
    """Configuration of a hub set (default, metadata, extended, ...)."""
    revision: str | None = None
    """Branch, tag or commit of a hub set (none: its newest)."""
    split: str | None = None
    """Split of folders and hub sets (none: train)."""
    columns: tuple[str, ...] = ()
    """Columns of your own: question=NAME thinking=NAME answer=NAME, and reference (the right
    answer), system, id, source where there are any."""
    sources: tuple[str, ...] = ()
    """Values of the column source that are kept (none: all)."""
    out: Path | None = None
    """Required. The training file to write (.jsonl)."""
    questions_only: bool = False
    """Questions for the teacher, even where an answer is there."""
    tokenizer: Path | None = None
    """Checkpoint directory whose tokenizer counts tokens, for --max-tokens."""
    max_tokens: int = 16384
    """Longer conversations are dropped (needs --tokenizer)."""
    decontaminate: tuple[Path, ...] = ()
    """Task files whose questions must not be trained on."""
    ngram: int = 5
    """Words of a phrase, for --decontaminate."""
    overlap: float = 0.3
    """Share of a test question's phrases, the common ones weighing less, that makes a question
    contaminated; 0: any one phrase (s1's and open-r1's rule: --ngram 8 --overlap 0)."""
    near_duplicates: float | None = None
    """Drop questions whose five-word pieces overlap so much with an earlier one's (0.8, say)."""
    deduplicate: bool = True
    """Drop questions that came before, but for case, ends of sentences and spacing."""
    keep: tuple[str, ...] = ()
    """Cleaning steps to leave out: loops, language, box (mathematics without one), code (programs
    without a fenced block), letter (science without the letter that the reference is)."""
    require_think: bool = True
    """Drop answers without a thought (--no-require-think: for train.py --no-require-think)."""
    generations: int = 1
    """How many generations of a row are used that pass every check."""
    all_generations: bool = False
    """Use all of them; the records' ids end in /0, /1, ..."""
    verify: bool = False
    """Grade each answer with this project's graders and drop wrong ones. The rules are exact: an
    answer in words, rounded where the reference is not, or with the unit of another system is
    dropped. Programs' results are compared as their sets do: decimals within 1e-6."""
    sandbox: Level = "namespaces"
    """Isolation of programs that --verify runs."""
    limit: int | None = None
    """Read only so many rows."""
    quiet: bool = False
    """No progress on standard error."""

    domain: ClassVar[Domain]
    groups: ClassVar[Groups] = GROUPS
    paper: ClassVar[str]  # what section 2.1 says of the numbers

    def __post_init__(self) -> None:
        check_range(self, 1, inf, "max_tokens", "limit", "ngram", "generations")
        check_range(self, 0.05, 1, "near_duplicates")
        check_range(self, 0, 1, "overlap")
        default = DataOptions
        for option, of, without in (
            ("max_tokens", "tokenizer", "to count them"),
            ("sandbox", "verify", "which runs programs"),
            ("ngram", "decontaminate", "which compares by them"),
            ("overlap", "decontaminate", "which compares by it"),
        ):
            value = getattr(self, option)
            if value != getattr(default, option) and not getattr(self, of):
                raise UserError(f"{flag(option)}={value}: needs {flag(of)}, {without}")
        no_answers = {"verify", "keep", "tokenizer", "generations", "all_generations"}
        no_answers |= {"require_think"}
        changed = {name for name in no_answers if getattr(self, name) != getattr(default, name)}
        if self.questions_only and changed:
            raise UserError(f"{flag(min(changed))}: of answers, and --questions-only has none")
        if self.sandbox != default.sandbox and self.domain != "coding":
            raise UserError(f"--sandbox={self.sandbox}: of programs, which only coding has")
        if self.all_generations and self.generations != default.generations:
            raise UserError("--all-generations: --generations is given, too; choose one")
        columns_of(self.columns)
        kept_reasons(self.keep)
        others = {"math": {"code", "letter"}, "coding": {"box", "letter"}}
        for step in kept_names(self.keep) & others.get(self.domain, {"box", "code"}):
            raise UserError(f"--keep={step}: a step of another branch than {self.domain}")

    def selection(self) -> Selection:
        """Which rows and generations are wanted."""
        return Selection(
            self.domain, self.questions_only, self.sources, require_think=self.require_think
        )

    def whole_sources(self) -> tuple[str, ...]:
        """Further sources, all of whose rows are wanted."""
        return ()


@dataclass(frozen=True)
class MathOptions(DataOptions):
    """Make the math branch's training file, from OpenR1-Math-220k or conversations of your own."""

    question_types: tuple[str, ...] = ("math-word-problem",)
    """Values of OpenR1's question_type that are kept (none: all)."""
    require_verified: bool = True
    """Only generations that correctness_math_verify or correctness_llama marks true; without it
    these come first."""
    prefer: Prefer = "first"
    """Which is tried first of several usable generations; one that fails a check costs nothing."""

    domain = "math"
    groups: ClassVar[Groups] = GROUPS | {
        "OpenR1-Math and NuminaMath": "question_types require_verified prefer"
    }
    paper = "the paper kept 58k of OpenR1-Math-220k's 94k; by which values it does not say"

    def selection(self) -> Selection:
        return replace(
            super().selection(),
            question_types=self.question_types,
            require_verified=self.require_verified,
            prefer=self.prefer,
        )


@dataclass(frozen=True)
class CodingOptions(DataOptions):
    """Make the coding branch's training file."""

    domain = "coding"
    paper = "the paper has 20k; OpenThoughts-114k holds 19,904 programs"


@dataclass(frozen=True)
class ScienceOptions(DataOptions):
    """Make the science branch's training file, or its questions for the teacher."""

    cot_types: tuple[str, ...] = S1_TYPES
    """Values of s1's cot_type that are kept (none: all)."""
    whole: tuple[str, ...] = ()
    """Further sources, all of whose rows are used whatever their cot_type: the paper's s1K."""

    domain = "science"
    groups: ClassVar[Groups] = GROUPS | {"s1": "cot_types whole"}
    paper = "the paper has 8.6k: 2.7k of s1's 59K, 1.0k of s1K, 4.9k of OpenThoughts"

    def selection(self) -> Selection:
        return replace(super().selection(), cot_types=self.cot_types)

    def whole_sources(self) -> tuple[str, ...]:
        return self.whole


@dataclass(frozen=True)
class InspectOptions:
    """Check a training file line by line and show what is in it."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The training file."""
    tokenizer: Path | None = None
    """Checkpoint directory: counts tokens and shows which are targets."""
    examples: int = 2
    """Records to print (with --tokenizer)."""
    require_think: bool = True
    """A record without one thought and an answer is a fault, as it is for train.py."""
    quiet: bool = False
    """No progress on standard error."""


COMMANDS = {
    "math": MathOptions,
    "coding": CodingOptions,
    "science": ScienceOptions,
    "inspect": InspectOptions,
}


def counter(folder: Path) -> Callable[[Draft], int]:
    """Tokens of a draft after templating."""
    tokenizer = Tokenizer(folder)
    template: TemplateName = guess_template(tokenizer)

    def count(draft: Draft) -> int:
        record = Record.from_json(record_of(draft), require_think=False)  # it was checked
        return len(render(tokenizer, record.messages, template).tokens)

    return count


def make(c: DataOptions) -> None:
    """Build --out, print the waterfall."""
    check_given(c, *([] if c.whole_sources() else ["source"]), "out")
    out = given(c.out, "--out")
    log = Log(c.quiet)
    if out.suffix != ".jsonl" or out.is_dir():
        raise UserError(f"--out={out}: expected the name of a .jsonl file")
    for path in c.decontaminate:
        if is_output(path, out):
            raise UserError(f"--decontaminate={path}: --out={out} would write it; choose another")
    sources = open_sources(c.source, out, c.hub_config, c.revision, c.split, c.whole_sources())
    for source in sources:
        if source.unread:
            more = f" and {len(source.unread) - 8} more" if len(source.unread) > 8 else ""
            log.warn(f"{source.name}: not read: {', '.join(source.unread[:8])}{more}")
    if not c.tokenizer and not c.questions_only:
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
            Contamination(c.decontaminate, c.ngram, c.overlap) if c.decontaminate else None,
        ),
        keep=kept_reasons(c.keep) | (set() if c.require_think else {"empty_thought"}),
        generations=None if c.all_generations else c.generations,
    )

    options = {k: v for k, v in to_json(c).items() if k not in ("source", "out", "quiet", "whole")}
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
    counts = build(rows, converter(c), out, steps, about, log)
    for line in counts.lines():
        print(line)
    if c.verify and counts.unverified:
        print(f"  of these {counts.unverified:,} had nothing to be verified by")
    print(c.paper)
    if not counts.rows_in:
        raise UserError(f"--source={' '.join(source.name for source in sources)}: no rows")
    log.say(f"written: {out} (what was dropped, and why: {out.with_suffix('.rejected.jsonl')})")
    inspect_line = f"python -m tinyr1.data inspect {out} --tokenizer MODEL"
    train_line = f"python train.py {c.domain} --model MODEL --data {out} --out EXPERT --dry-run"
    teacher_line = f"python -m tinyr1.teacher MODEL --questions {out} --out ANSWERS.jsonl"
    log.lead_on(*([teacher_line] if c.questions_only else [inspect_line, train_line]))
    if not counts.rows_out:
        hint = "; --questions-only is for the teacher" if "no_trajectory" in counts.dropped else ""
        beside = out.with_suffix(".partial") / "rejected.jsonl"  # where FILE has stayed as it was
        reasons = beside if beside.exists() else out.with_suffix(".rejected.jsonl")
        raise UserError(f"{out}: no row is left; see {reasons}{hint}")


def converter(c: DataOptions) -> Convert:
    """How rows become drafts: by --columns, or by the schema that is known by their columns."""
    want = c.selection()
    columns = columns_of(c.columns)
    if columns and want.question_types != Selection.question_types:
        raise UserError("--question-types: of OpenR1's schema, and --columns names another")

    def convert(place: Place) -> list[Draft]:
        wanted = replace(want, cot_types=()) if place.is_whole else want
        if columns:
            drafts = drafts_by_columns(place, wanted, columns)
        else:
            drafts = drafts_of(place, wanted)
        if drafts[0].thought is None and not c.questions_only:
            raise Dropped("no_trajectory", drafts[0].question)
        return drafts

    return convert


def inspect(c: InspectOptions) -> None:
    """Check every line as train.py does; print counts, lengths, a few records, and what is odd."""
    path = c.file
    log = Log(c.quiet)
    tokenizer = Tokenizer(c.tokenizer) if c.tokenizer else None
    template: TemplateName = guess_template(tokenizer) if tokenizer else "deepseek_r1"
    domains, sources, ids, odd = (Counter[str]() for _ in range(4))
    lengths: list[int] = []
    shown: list[str] = []
    faults: list[str] = []
    records = read_records(path, c.require_think)
    for number, record in log.bar(records, desc="checking", unit="row"):
        try:
            if isinstance(record, ValueError):
                raise record
            example = render(tokenizer, record.messages, template) if tokenizer else None
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
            continue
        domains[record.domain or "(none)"] += 1
        sources[record.source or "(none)"] += 1
        ids[record.id] += 1
        odd.update(oddities(record, c.require_think))
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
    if twice := [name for name, count in ids.items() if count > 1 and name]:
        print(f"warning: {len(twice):,} ids appear more than once ({twice[0]!r}, ...)")
    for what, count in odd.most_common():
        print(f"warning: {count:,} records: {what}")
    print(
        f"{unit}: 5 % below {low:,}, half below {middle:,}, 95 % below {high:,}, "
        f"longest {max(lengths):,}, mean {fmean(lengths):,.0f}, in all {sum(lengths):,}"
    )
    picture = path.with_suffix(".lengths.png")
    if plot.drawn(plot.histogram, picture, lengths, unit, path.name):
        print(f"histogram: {picture}")
    for text in shown:
        print(text)


def oddities(record: Record, require_think: bool) -> Iterator[str]:
    """What train.py takes and is hardly meant: said, not refused."""
    if not record.id:
        yield "no id"
    answers = [m.content for m in record.messages if m.role == "assistant"]
    if require_think and not all(map(thinking.is_normal, answers)):
        yield "white space around the thought is not that of '<think>\\n...\\n</think>\\n\\n...'"
    text = "".join(answers)
    yield from (f"an answer has {mark} in it" for mark in (*MARKERS, *LEAKS) if mark in text)


def main() -> None:
    assert __doc__
    command = parse_command(COMMANDS, sys.argv[1:], "python -m tinyr1.data", __doc__)
    if isinstance(command, InspectOptions):
        inspect(command)
    else:
        make(command)


if __name__ == "__main__":
    run_main(main)

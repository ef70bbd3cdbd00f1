"""A sampling run that survives: samples.jsonl grows as they finish, a rerun does the missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from tinyr1.common.errors import RunStopped, UserError
from tinyr1.common.files import Journal, read_object, write_json
from tinyr1.common.log import Log
from tinyr1.record import Prompt, Sample
from tinyr1.sampling.queue import WorkQueue
from tinyr1.sampling.sampler import Sampler, Usage

Key = tuple[str, str, int]
SAVE_USAGE_S = 10.0


def sample_missing(
    make_sampler: Callable[[int], Sampler],
    prompts: Sequence[Prompt],
    out: Path,
    settings: dict[str, Any],
    log: Log,
    queue: WorkQueue,
    budget_tokens: int | None = None,
    partial: bool = False,
    price: Callable[[Usage], float] | None = None,
) -> list[Sample]:
    """Sample every prompt that OUT/samples.jsonl does not hold yet; returns all, in prompt order.

    With `budget_tokens` nothing more is asked once OUT has so many tokens, shared among processes.
    With `partial` what could not be had is left out, with a warning; without, it ends the run.
    With `price` the bar shows what the run has cost. What a server was asked, answers that were
    thrown away included, is added up in OUT/usage.rankN.json.

    `make_sampler(n)` is asked for an engine for n samples, if any are missing. `settings` is what
    the samples depend on besides their prompts. It is kept in OUT/sampling.json; a rerun with
    others is refused by field name: one file must not mix two experiments. Each rank of `queue`
    writes a file of its own while it runs; what they hold is gathered in samples.jsonl.
    """
    ranks = queue.ranks
    if ranks.is_main:
        # Samples of ranks that were killed count before anything is compared.
        _gather(out)
        if not _read(out / "samples.jsonl"):  # then nothing binds us to what was asked for once
            for name in ("sampling.json", "prompts.json"):
                (out / name).unlink(missing_ok=True)
        check_settings(out / "sampling.json", settings)
        _check_prompts(out / "prompts.json", prompts)
    # The others must not read before the main rank has gathered, nor it write before they have
    # read.
    queue.meet("gathered")
    done = _read(out / "samples.jsonl")
    queue.meet("read")  # from here on the files grow
    missing = [p for p in prompts if p.key not in done]
    if done and missing:
        log.say(f"{out}: {len(prompts) - len(missing)} of {len(prompts)} samples are there")
    if missing:
        share = -(-len(missing) // ranks.world_size)
        if budget_tokens is not None:
            spent = sum(sample.token_count for sample in done.values())
            budget_tokens = (budget_tokens - spent) // ranks.world_size
        name = "samples.jsonl" if ranks.is_main else f"samples.rank{ranks.rank}.jsonl"
        with Journal(out / name) as journal:
            sampler = make_sampler(share)
            paid = _Paid(out / f"usage.rank{ranks.rank}.json")
            try:
                _sample(sampler, missing, journal, log, queue, budget_tokens, paid, price)
            except (RunStopped, UserError) as why:
                # A fault of the address or the key costs nothing of what was answered before.
                if not partial or (isinstance(why, UserError) and not done):
                    raise
                log.warn(str(why))
            finally:
                paid.save(sampler.status.usage)
                sampler.close()
    queue.meet("sampled")
    if not ranks.is_main:
        return []
    _gather(out)
    done = _read(out / "samples.jsonl")
    return [done[p.key] for p in prompts if p.key in done or not partial]


def _sample(
    sampler: Sampler,
    missing: Sequence[Prompt],
    journal: Journal,
    log: Log,
    queue: WorkQueue,
    budget_tokens: int | None,
    paid: _Paid,
    price: Callable[[Usage], float] | None,
) -> None:
    finished, tokens = 0, 0

    def affordable(_: Prompt) -> bool:
        return budget_tokens is None or sampler.status.tokens < budget_tokens

    with log.bar(desc="sampling", unit="tok", unit_scale=True) as bar:
        for samples in sampler.generate(takewhile(affordable, queue.claim(missing))):
            if samples:
                journal.append(*(s.to_json() for s in samples))
            finished += len(samples)
            now = sampler.status
            said = f"finished {finished}/{len(missing)}, running {now.running}"
            said += f", longest {now.longest}"
            if now.usage:
                paid.save_sometimes(now.usage)
                again = now.usage.retried_answers
                said += f", asked again {again}" if again else ""
                said += f", cost {price(paid.total(now.usage)):.2f}" if price else ""
            bar.set_postfix_str(said, refresh=False)
            bar.update(now.tokens - tokens)
            tokens = now.tokens


class _Paid:
    """The usage of a server in all calls of a run, on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = _usage(path) if path.exists() else Usage()
        self._saved = time.monotonic()

    def total(self, usage: Usage) -> Usage:
        return self.before + usage

    def save(self, usage: Usage | None) -> None:
        if usage:
            write_json(self.path, asdict(self.total(usage)))

    def save_sometimes(self, usage: Usage) -> None:
        if time.monotonic() - self._saved > SAVE_USAGE_S:
            self.save(usage)
            self._saved = time.monotonic()


def usage_of(out: Path) -> Usage:
    """What a server was asked in all calls of a run by all its processes."""
    return sum((_usage(path) for path in sorted(out.glob("usage.rank*.json"))), Usage())


def _usage(path: Path) -> Usage:
    values = read_object(path)
    try:
        return Usage(**{f.name: int(values[f.name]) for f in fields(Usage)})
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: no usage of a run; move it away to start anew") from None


def _read(path: Path) -> dict[Key, Sample]:
    with Journal(path) as journal:
        try:
            return {sample.key: sample for sample in map(Sample.from_json, journal.rows)}
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None


def _gather(out: Path) -> None:
    """Move what other ranks wrote, in this run or in one that was killed, into samples.jsonl."""
    parts = sorted(out.glob("samples.rank*.jsonl"))
    if not parts:
        return
    known = _read(out / "samples.jsonl").keys()
    with Journal(out / "samples.jsonl") as journal:
        for part in parts:
            rows = [s.to_json() for key, s in _read(part).items() if key not in known]
            journal.append(*rows)
            part.unlink()  # its rows are on disk


def prompt_hashes(prompts: Sequence[Prompt]) -> dict[str, str]:
    """A hash of each prompt by its key as JSON: [task, id, trial]."""
    return {json.dumps(p.key, ensure_ascii=False): p.fingerprint() for p in prompts}


def _check_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Keep a hash of every prompt; UserError where a sample's prompt has changed since.

    Rows and trials may be added to a run: only what is there already must have stayed the same.
    """
    known: dict[str, str] = read_object(path) if path.exists() else {}
    mine = prompt_hashes(prompts)
    for name, value in mine.items():
        if known.get(name, value) != value:
            task, row, _ = json.loads(name)
            raise UserError(
                f"{task}/{row}: its prompt is not the one that was sampled in {path.parent}; "
                "use another --out"
            )
    if not mine.keys() <= known.keys():
        write_json(path, known | mine)


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write `settings` the first time; UserError naming the first field that differs later."""
    if path.exists():
        before = read_object(path)
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{name}={value}: the results in {path.parent} were made with "
                    f"{before.get(name)}; use that value or another --out"
                )
    else:
        write_json(path, settings)

"""A sampling run that survives: samples.jsonl grows as they finish, a rerun does the missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyr1.errors import UserError
from tinyr1.files import Journal, hash_json, read_json, write_json
from tinyr1.log import Log
from tinyr1.record import Prompt, Sample
from tinyr1.sampling.engine import Engine


def sample_missing(
    engine: Engine, prompts: Sequence[Prompt], out: Path, settings: dict[str, Any], log: Log
) -> list[Sample]:
    """Sample every prompt that OUT/samples.jsonl does not hold yet; returns all, in prompt order.

    `settings` is what the samples depend on besides their prompts. It is kept in OUT/sampling.json;
    a rerun with others is refused by field name: one file must not mix two experiments.
    """
    check_settings(out / "sampling.json", settings)
    _check_prompts(out / "prompts.json", prompts)
    with Journal(out / "samples.jsonl") as journal:
        try:
            done = {sample.key: sample for sample in map(Sample.from_json, journal.rows)}
        except ValueError as error:
            raise UserError(f"{journal.path}: {error}") from None
        missing = [p for p in prompts if p.key not in done]
        if done and missing:
            log.say(f"{out}: {len(prompts) - len(missing)} of {len(prompts)} samples are there")
        with log.bar(total=len(missing), desc="sampling", unit="sample") as bar:
            for samples in engine.generate(missing):
                journal.append(*(s.to_json() for s in samples))
                done.update((s.key, s) for s in samples)
                bar.update(len(samples))
                bar.set_postfix(tokens=engine.tokens_out, running=len(engine.rows), refresh=False)
    return [done[p.key] for p in prompts]


def _check_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Keep a hash of every prompt; UserError where a sample's prompt has changed since.

    Rows and trials may be added to a run: only what is there already must have stayed the same.
    """
    known: dict[str, str] = read_json(path) if path.exists() else {}
    mine = {f"{p.task}/{p.id}/{p.trial}": hash_json(p.tokens)[:16] for p in prompts}
    for name, value in mine.items():
        if known.get(name, value) != value:
            raise UserError(
                f"{name}: its prompt is not the one that was sampled in {path.parent}; "
                "use another --out"
            )
    if not mine.keys() <= known.keys():
        write_json(path, known | mine)


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write `settings` the first time; UserError naming the first field that differs later."""
    if path.exists():
        before = read_json(path)
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{name}={value}: the samples in {path.parent} were made with "
                    f"{before.get(name)}; use that value or another --out"
                )
    else:
        write_json(path, settings)

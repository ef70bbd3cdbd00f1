"""`train.py --preview`: the first packs as text, ids and targets, before anything is trained.

Most failures of reasoning SFT are in the data: a thought stripped by a template, a missing EOS, a
mask shifted by one. They show here at a glance.
"""

from __future__ import annotations

from tinyr1.log import Log
from tinyr1.packing import make_batch
from tinyr1.tokenizer import Tokenizer
from tinyr1.train_plan import TrainConfig, describe, prepare

PACKS = 2
DOCUMENTS = 3


def print_preview(config: TrainConfig, log: Log) -> None:
    """Print the first documents of the first packs, targets marked, with every token id."""
    tokenizer, corpus, plan, _ = prepare(config, log)
    for line in describe(config, corpus, plan):
        print(line)
    for number, pack in enumerate(plan.packs(1)[:PACKS]):
        batch = make_batch([pack], corpus.read, config.packing, config.loss_weighting)
        print(
            f"\n== pack {number}: {len(pack.documents)} documents, {pack.token_count} of "
            f"{config.seq_len} tokens, {len(batch.targets)} targets"
        )
        for document in pack.documents[:DOCUMENTS]:
            tokens, is_target = corpus.read(document)
            ids = tokens.tolist()
            print(f"-- {corpus.ids[document]}: {len(ids)} tokens")
            print("text (targets between >> and <<):")
            print(_marked(tokenizer, ids, is_target.tolist()))
            print("ids (targets with *):")
            print(" ".join(f"{i}*" if t else str(i) for i, t in zip(ids, is_target, strict=True)))


def _marked(tokenizer: Tokenizer, ids: list[int], is_target: list[bool]) -> str:
    """The text with its target spans marked; special tokens stay visible."""
    text, start = "", 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or is_target[end] != is_target[start]:
            span = tokenizer.decode_raw(ids[start:end])
            text += f">>{span}<<" if is_target[start] else span
            start = end
    return text

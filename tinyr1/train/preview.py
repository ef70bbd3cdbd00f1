"""`train.py --preview`: the first packs as text, ids and targets, before anything is trained.

Most failures of reasoning SFT are in the data: a thought stripped by a template, a missing EOS, a
mask shifted by one. They show here at a glance.
"""

from __future__ import annotations

from tinyr1.common.log import Log
from tinyr1.model.chat import marked
from tinyr1.record import Example
from tinyr1.train.options import TrainConfig
from tinyr1.train.packing import make_batch
from tinyr1.train.plan import describe, prepare

PACKS = 2
DOCUMENTS = 3


def print_preview(config: TrainConfig, log: Log) -> None:
    """Print the first documents of the first packs, targets marked, with every token id."""
    prepared = prepare(config, log)
    tokenizer, corpus, plan = prepared.tokenizer, prepared.corpus, prepared.plan
    for line in describe(prepared):
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
            print(marked(tokenizer, Example(ids, is_target.tolist())))
            print("ids (targets with *):")
            print(" ".join(f"{i}*" if t else str(i) for i, t in zip(ids, is_target, strict=True)))

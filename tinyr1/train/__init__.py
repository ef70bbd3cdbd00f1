"""Fine-tuning one expert (paper sections 2.1 and 3.1.1): records in, a Hugging Face checkpoint out.

    options, recipes/      what can be chosen, and what the paper chose
    corpus, packing        records -> tokens, once -> packs of isolated documents
    plan                   (seed, epoch, step) -> packs -> micro-batches of each rank
    sft                    the road itself: train() down to train_step()
    parallel, optim        FSDP2 from outside; AdamW with small moments, the rates
    saver, metrics         checkpoints, exports, what is told of each step
    flops, memory, preview what `--dry-run` and `--preview` say before anything is started
Read packing and sft first; the others are what they stand on.
"""

from tinyr1.train.packing import plan_packs

__all__ = ["plan_packs"]

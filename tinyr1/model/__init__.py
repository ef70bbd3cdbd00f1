"""The backbone (Qwen2), its text and its files.

In: a Hugging Face directory, conversations. Out: logits or a loss, token ids, a directory again.

    qwen2, loss, config           the network; one forward for batches, packs and decoding
    tokenizer, chat               text to ids, and conversations to ids with their targets
    rows, weights, writer         checkpoints on disk, read and written some rows at a time
`weights` takes expected names and shapes as an argument and knows nothing of the network, so
merging reads models of any architecture. `import tinyr1.model` needs torch alone.
"""

from tinyr1.model.qwen2 import Qwen2

__all__ = ["Qwen2"]

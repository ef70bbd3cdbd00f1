"""TinyR1: Branch-Merge distillation (arXiv 2503.04872) from scratch in PyTorch.

Reading order: record, chat, packing, loss, model, sft, fusion, merging, sampling.engine,
graders, evaluation, report, lab. Each file opens with the section of the paper it implements.
"""

__version__ = "0.1.0"

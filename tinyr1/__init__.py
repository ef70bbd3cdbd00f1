"""TinyR1: Branch-Merge distillation (arXiv 2503.04872) from scratch in PyTorch.

Read `nano` first: the paper in one file, which imports nothing of the rest. Then `record` and
`thinking`, the types and the text that flow through everything, and the rooms in the paper's order:
`model`, `data`, `train`, `merge`, `sampling`, `graders`, `evaluate`, `lab`. `common` has what is
not the paper's. Each room's `__init__` says what comes in, what goes out, and what to read first.
"""

__version__ = "0.1.0"

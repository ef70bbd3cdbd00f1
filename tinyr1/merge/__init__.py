"""Merging experts (paper sections 2.2 and 3.3): checkpoints in, one checkpoint and a report out.

    fusion, quartiles      Arcee Fusion beside its equations, exact and in any memory
    methods                the methods that it is compared with, by their mergekit names
    options, plan          what was asked, and everything that is wrong with it, before any work
    run                    tensor by tensor into OUT.partial, resumable, then renamed
    card, diff             what is left for people; `merge.py --diff`
Read fusion first, with section 2.2 beside it. Nothing here knows an architecture.
"""

from tinyr1.merge.fusion import arcee_fusion
from tinyr1.merge.methods import METHODS, MergeMethod, MergeParams

__all__ = ["METHODS", "MergeMethod", "MergeParams", "arcee_fusion"]

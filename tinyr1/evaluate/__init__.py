"""Evaluation (paper section 3.1.2, tables 1 and 2): a model and tasks in, pass@1 with errors out.

    tasks, benchmarks      rows of task files and of published sets; the prompts of three protocols
    options, run           sample, grade, write into DIR; a rerun does what is missing
    loss                   of held-out training files, what moves before accuracy does
    stats, scores          error bars, votes, lengths
    paper, report          the paper's own numbers, and ours beside them
    convert, harnesses     samples of other harnesses as ours (a command)
Sampling and grading are apart: what was sampled elsewhere is graded by the same code.
"""

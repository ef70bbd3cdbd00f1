"""The laboratory: the whole Branch-Merge experiment at the scale of one CPU.

    world        the three domains, the teacher with its habits, and the tokenizer
    initial      the model that the branches start from (the stand-in of R1-Distill-Qwen)
    stages       data, branches, merges and evaluations, through the entry scripts
    findings     the table, the figures and the sentences computed from the numbers

Run it with `python -m tinyr1.lab --out DIR`.
"""

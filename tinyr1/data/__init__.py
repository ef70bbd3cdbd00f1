"""The branches' data sets (paper section 2.1): published rows become checked training records.

In: parquet, JSON lines or hub sets of others. Out: FILE.jsonl of our records, and what was dropped.

    published, sources     rows of files and sets, a few in memory at a time
    math, coding, science  each branch's schemas and the paper's selections: row -> Draft
    clean, compare         what a well-formed trajectory is; duplicates and test questions
    pipeline               all of it in order, counted, resumable; `python -m tinyr1.data` runs it
"""

"""The branches' data sets (paper section 2.1): published rows become checked training records.

`clean` says what a well-formed trajectory is; `math`, `coding` and `science` know the published
schemas and the paper's selections; `sources` reads files without holding them; `pipeline` puts them
together, counts what was dropped and why, and writes. `python -m tinyr1.data --help`.
"""

"""Everything that is not the paper's and that every room uses. It imports no other room.

    start, errors      how programs begin and how they end: exit codes, one plain line
    config             command lines from dataclasses, recipes from TOML
    files              written beside, fsynced, renamed; journals; locks
    log, tables, page, plot    what people see: bars and lines, tables, reports, pictures
    ranks, threads     the processes of torchrun, and the cores of one
Read `errors` and `files` before anything else: all other rooms keep what these two promise.
"""

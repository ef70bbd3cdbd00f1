"""Graders (paper section 3.1.2): a task row and any text of a model in, a `Grade` out.

    grading                the rules in one page, and which grader a row asks for
    answer                 the last box, the last fenced block
    math                   equality of exact values, with latex (one spelling of every sign),
                           algebra (one order of every expression), names and units
    choice, statements     which letter an answer settles on, and the forms in which it is said
    code, sandbox, sandbox_child  programs, run where they can harm nobody
    symbolic, released     second opinions, in columns of their own
No text of a model reaches `eval` or a symbolic parser in this process.
"""

from tinyr1.graders.grading import grade
from tinyr1.graders.sandbox import SandboxUnavailable

__all__ = ["SandboxUnavailable", "grade"]

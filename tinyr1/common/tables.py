"""Tables of text, as Markdown and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence


class Table:
    """A header and rows of text cells."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.header = list(header)
        self.rows = [list(row) for row in rows]

    def markdown(self) -> str:
        def row(cells: Sequence[str]) -> str:
            return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

        rule = "|---" + "|---:" * (len(self.header) - 1) + "|"
        return "\n".join([row(self.header), rule, *map(row, self.rows)])

    def html(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(row(r, "td") for r in self.rows)
        return f"<table><thead>{row(self.header, 'th')}</thead><tbody>{body}</tbody></table>"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"

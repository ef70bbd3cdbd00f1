"""Tables of text, as Markdown and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence


class Link(str):
    """A cell's text that leads to a file, or several: `Link("a", href)`."""

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        link = super().__new__(cls, text)
        link.href = href
        return link

    def markdown(self) -> str:
        return f"[{self}]({self.href})"

    def html(self) -> str:
        return f'<a href="{html.escape(self.href)}">{html.escape(self)}</a>'


Cell = str | Sequence[Link]  # plain text, a link, or several


class Table:
    """A header and rows of cells; `colours`, of a row each, mark its first cell on the page."""

    def __init__(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        colours: Sequence[str] = (),
    ) -> None:
        self.header = list(header)
        self.rows = [list(row) for row in rows]
        self.colours = colours

    def markdown(self) -> str:
        def row(cells: Sequence[Cell]) -> str:
            return "| " + " | ".join(map(_markdown, cells)) + " |"

        rule = "|---" + "|---:" * (len(self.header) - 1) + "|"
        return "\n".join([row(self.header), rule, *map(row, self.rows)])

    def first(self, columns: int) -> Table:
        """The same of the first columns only."""
        return Table(self.header[:columns], [row[:columns] for row in self.rows], self.colours)

    def html(self) -> str:
        def row(cells: Sequence[Cell], tag: str, colour: str = "") -> str:
            mark = f' style="border-left: 0.5rem solid {colour}"' if colour else ""
            first, *others = [_html(cell) for cell in cells]
            rest = "".join(f"<{tag}>{cell}</{tag}>" for cell in others)
            return f"<tr><{tag}{mark}>{first}</{tag}>{rest}</tr>"

        colours = self.colours or [""] * len(self.rows)
        body = "".join(row(r, "td", c) for r, c in zip(self.rows, colours, strict=True))
        return f"<table><thead>{row(self.header, 'th')}</thead><tbody>{body}</tbody></table>"


def _markdown(cell: Cell) -> str:
    if isinstance(cell, Link):
        return cell.markdown()
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    return " ".join(link.markdown() for link in cell)


def _html(cell: Cell) -> str:
    if isinstance(cell, Link):
        return cell.html()
    if isinstance(cell, str):
        return html.escape(cell)
    return " ".join(link.html() for link in cell)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"

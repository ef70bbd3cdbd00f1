"""Pages: Markdown for people, the same as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from tinyr1.common.files import write_atomic
from tinyr1.common.tables import Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
.sample { border-left: 4px solid #c33; margin: 0.3rem 0; padding-left: 0.6rem; }
.sample.right { border-color: #2a7; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f7f7; padding: 0.5rem; }
table { display: block; overflow-x: auto; }
code { background: #f2f2f2; padding: 0 0.2rem; }
"""


class Figure:
    """A picture beside the report, with a caption."""

    def __init__(self, path: Path, caption: str) -> None:
        self.path = path
        self.caption = caption

    def markdown(self) -> str:
        return f"![{self.caption}]({self.path.name})\n\n{self.caption}"

    def html(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        caption = html.escape(self.caption)
        picture = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


class Heading:
    """A section title."""

    def __init__(self, text: str) -> None:
        self.text = text

    def markdown(self) -> str:
        return f"## {self.text}"

    def html(self) -> str:
        return f"<h2>{html.escape(self.text)}</h2>"


class Items:
    """A bulleted list of sentences."""

    def __init__(self, items: Sequence[str]) -> None:
        self.items = list(items)

    def markdown(self) -> str:
        return "\n".join(f"- {item}" for item in self.items)

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in self.items) + "</ul>"


Block = str | Table | Figure | Heading | Items


def write_page(folder: Path, title: str, blocks: Sequence[Block], tail: str = "") -> None:
    """Write report.md and report.html (pictures inside it) from the same blocks.

    `tail` is HTML that stands at the end of the page alone.
    """
    parts = [b if isinstance(b, str) else b.markdown() for b in blocks]
    write_atomic(folder / "report.md", f"# {title}\n\n" + "\n\n".join(parts) + "\n")
    body = "\n".join(f"<p>{html.escape(b)}</p>" if isinstance(b, str) else b.html() for b in blocks)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}"
        f"</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}"
        f"{tail}</body></html>\n"
    )
    write_atomic(folder / "report.html", page)

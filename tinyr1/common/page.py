"""Pages: Markdown for people, the same as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from tinyr1.common.files import write_atomic
from tinyr1.common.tables import Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7rem; }
thead th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
.sample { border-left: 4px solid #c33; margin: 0.3rem 0; padding-left: 0.6rem; }
.sample.right { border-color: #2a7; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f7f7; padding: 0.5rem; }
table { display: block; overflow-x: auto; }
code { background: #f2f2f2; padding: 0 0.2rem; }
figure { margin: 1rem 0; }
figcaption { font-size: 0.9rem; color: #555; }
.warned { border: 2px solid #c22; color: #a00; background: #fee; padding: 0.5rem 0.8rem;
          font-weight: 600; }
.cards { display: grid; gap: 0.8rem; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
.cards h4 { margin: 0.2rem 0; font-size: 0.9rem; color: #555; }
.cards pre { margin: 0; font-size: 0.85rem; }
@media (max-width: 480px) { body { margin: 0.8rem auto; font-size: 15px; }
  h1 { font-size: 1.4rem; } table { font-size: 0.82rem; } th, td { padding: 0.2rem 0.4rem; } }
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


class Warned:
    """A line that must not be missed."""

    def __init__(self, text: str) -> None:
        self.text = text

    def markdown(self) -> str:
        return f"**{self.text}**"

    def html(self) -> str:
        return f'<p class="warned">{html.escape(self.text)}</p>'


class Quoted:
    """Texts as they are, each under its label: a question, and what models said."""

    def __init__(self, title: str, texts: Sequence[tuple[str, str]]) -> None:
        self.title = title
        self.texts = list(texts)

    def markdown(self) -> str:
        parts = [f"### {self.title}"]
        for label, text in self.texts:
            quoted = "\n".join(f"    {line}" for line in text.splitlines())
            parts += [f"{label}:", quoted]
        return "\n\n".join(parts)

    def html(self) -> str:
        cards = "".join(
            f"<div><h4>{html.escape(label)}</h4><pre>{html.escape(text)}</pre></div>"
            for label, text in self.texts
        )
        return f'<h3>{html.escape(self.title)}</h3><div class="cards">{cards}</div>'


Block = str | Table | Figure | Heading | Items | Warned | Quoted


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

"""Pieces of the self-contained HTML pages: the frame, sections, cards, tables and numbers."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent


def document(title: str, parts: Sequence[str], script: str = "") -> str:
    """A whole page with the shared style and, if given, a script."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n</main>\n{f'<script>{script}</script>' if script else ''}\n</body>\n</html>\n"
    )


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """(value, name) of each figure as a row of cards."""
    shown = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in figures
    )
    return f'<div class="cards">{shown}</div>'


def section(title: str, *content: str) -> str:
    """A heading and what follows it, HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], grow: bool = False) -> str:
    """A table whose cells are HTML. With `grow`, the last column takes the remaining width."""
    last = len(header) - 1
    lines = ["".join(f"<th>{cell}</th>" for cell in header)]
    for row in rows:
        classes = ['class="name"' if i == 0 else 'class="grow"' if grow and i == last else "" for i in range(len(row))]
        lines.append("".join(f"<td {c}>{cell}</td>" for c, cell in zip(classes, row, strict=True)))
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table></div>"


def label(x: float, y: float, text: str) -> str:
    """Centred SVG text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text}</text>'


def size_of(number: int) -> str:
    """Bytes, such as 1.5 MB."""
    return f"{number / 1e6:,.1f} MB" if number >= 1e5 else f"{number / 1e3:,.1f} kB"


def short(number: float) -> str:
    """Such as 1.82M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if number >= size:
            return f"{number / (1e3 if unit == 'K' else size):.3g}{unit}"
    return f"{number:,}"


def visible(text: str) -> str:
    """Escaped, with visible line ends and tabs."""
    return escape(text).replace("\n", "<u>↵</u>\n").replace("\t", "<u>→</u>\t").replace("\r", "<u>␍</u>")

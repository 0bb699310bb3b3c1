"""Sections of a report as data, and their two forms: one HTML page, one Markdown text."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pretrain.inspection.charts import Line, line_chart
from pretrain.inspection.html import cards, document, section, table


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells are plain text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A line chart, which only the page has. `whole`: x counts something."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    whole: bool = False


@dataclass(frozen=True)
class Drawing:
    """A picture as HTML, which only the page has."""

    title: str
    html: str


Block = Text | Table | Chart | Drawing


@dataclass(frozen=True)
class Section:
    """A heading and what follows it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """Everything that a page says.

    Attributes:
        cards: (value, name) of the main figures.
        command: that makes the report.
    """

    title: str
    claim: str
    cards: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    command: str


def html_page(report: Report) -> str:
    """One self-contained page."""
    parts = [
        f"<h1>{escape(report.title)}</h1>\n<p>{escape(report.claim)}</p>\n{cards(report.cards)}",
        *(section(each.title, *map(_html, each.blocks)) for each in report.sections if each.blocks),
        section("Run it", f'<div class="text">{escape(report.command)}</div>'),
    ]
    return document(report.title, parts)


def markdown(report: Report) -> str:
    """Text and tables; the charts are on the page."""
    parts = [f"# {report.title}", report.claim]
    parts += [f"- {name}: **{value}**" for value, name in report.cards]
    for each in report.sections:
        shown = [text for text in map(_markdown, each.blocks) if text]
        parts += [f"## {each.title}", *shown] if shown else []
    return "\n\n".join([*parts, "## Run it", f"```bash\n{report.command}\n```", "Charts: `page.html`."]) + "\n"


def _html(block: Block) -> str:
    match block:
        case Text():
            return f"<p>{escape(block.text)}</p>"
        case Table():
            return table([escape(h) for h in block.header], [[escape(cell) for cell in row] for row in block.rows])
        case Drawing():
            return f"<h3>{escape(block.title)}</h3>\n{block.html}"
    chart = line_chart(block.lines, block.x_label, block.y_label, whole=block.whole)
    return f"<h3>{escape(block.title)}</h3>\n{chart}"


def _markdown(block: Block) -> str:
    match block:
        case Text():
            return block.text
        case Table():
            rows = [block.header, ["---"] * len(block.header), *block.rows]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return ""

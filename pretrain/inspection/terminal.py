"""Facts about a prepared folder as plain text for a terminal or a file."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.dataset.blend import Blend, Corpus
from data_pipeline.manifest import InputInfo
from data_pipeline.split_table import aligned, split_table
from pretrain.inspection.facts import DocumentView, Facts, RowView
from pretrain.inspection.pieces import Piece

RESET = "\x1b[0m"
BOLD, DIM, SPECIAL, MASKED = "\x1b[1m", "\x1b[2m", "\x1b[30;43m", "\x1b[34m"
TINTS = ("", "\x1b[36m")  # colours of neighbouring tokens, in turn
VISIBLE = {"\n": "↵", "\t": "→", "\r": "␍", "\x1b": "␛"}
BAR = 30


@dataclass(frozen=True)
class Style:
    """Whether to use colours, and the width of a line in characters."""

    colours: bool
    width: int

    def paint(self, text: str, code: str) -> str:
        """The text in a colour, if colours are used."""
        return f"{code}{text}{RESET}" if self.colours and code else text


def render(facts: Facts, timestep: float, colours: bool) -> str:
    """The whole report as one text."""
    style = Style(colours, shutil.get_terminal_size((100, 24)).columns)
    blocks = [
        _head(facts, style),
        split_table(facts.manifest, facts.folder)[:-1],
        _sources(facts, style),
        _histogram(facts, style),
        *(_document(view, facts, style) for view in facts.documents),
        *(_row(view, facts, style, timestep) for view in facts.rows),
    ]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def shares(blend: Blend) -> list[str]:
    """The corpora of a mixture, one per line: their share and how long they last."""
    total = sum(corpus.weight for corpus in blend.corpora)
    header = ("corpus", "share", "rows", "padding", "samples per epoch", "limit")
    table = [
        (
            str(corpus.path),
            f"{float(corpus.weight / total):.2%}",
            f"{corpus.rows:,}",
            f"{corpus.padding:.2%}",
            f"{int(corpus.rows * total / corpus.weight):,}",
            _limit(corpus),
        )
        for corpus in blend.corpora
    ]
    samples = blend.schedule.num_samples
    end = "never ends" if samples is None else f"ends after {samples:,} samples"
    sizes = f"rows of {blend.manifest.seq_len:,} tokens, {blend.manifest.vocab_size:,} token ids; the mixture {end}"
    return [f"{blend.path}: {sizes}", *(line.rstrip() for line in aligned([header, *table]))]


def _limit(corpus: Corpus) -> str:
    epochs = [] if corpus.max_epochs is None else [f"{corpus.max_epochs:g} epochs"]
    tokens = [] if corpus.max_tokens is None else [f"{corpus.max_tokens:,.0f} tokens"]
    return " or ".join(epochs + tokens) or "none"


def _head(facts: Facts, style: Style) -> list[str]:
    manifest, tokenizer = facts.manifest, facts.manifest.tokenizer
    return [
        style.paint(str(facts.folder), BOLD),
        f"{'shuffled ' * manifest.shuffle}{manifest.packing} rows of {manifest.seq_len:,} tokens; "
        f"{tokenizer.kind} tokenizer {tokenizer.file}",
        f"{manifest.vocab_size:,} token ids: end of document {tokenizer.eod_id}, padding {tokenizer.pad_id}, [MASK] "
        f"{tokenizer.mask_id}",
        *(f"left out, {cause}: {count:,} records" for cause, count in manifest.records.items()),
    ]


def _sources(facts: Facts, style: Style) -> list[str]:
    header = ("source", "files", "bytes", "documents", "tokens", f"share of {facts.share_of}", "")
    table = [
        (
            each.input,
            *(_count(n) for n in (each.files, each.bytes, each.documents, each.tokens)),
            f"{share:.1%}",
            _bar(share),
        )
        for each, share in facts.sources
    ]
    left_out = [f"{each.input}: {', '.join(_left_out(each))} left out" for each, _ in facts.sources if each.rejected]
    return [*aligned([header, *table]), *left_out]


def _left_out(source: InputInfo) -> Iterator[str]:
    return (f"{count:,} {cause}" for cause, count in (source.rejected or {}).items())


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _histogram(facts: Facts, style: Style) -> list[str]:
    histogram = facts.histogram
    largest = max(documents for *_, documents, _ in histogram.bins)
    total = sum(tokens for *_, tokens in histogram.bins)
    header = ("tokens per document", "documents", "share", "of all tokens", "")
    table = [
        (
            f"{low:,} to {high:,}" if high > low else f"{low:,}",
            f"{documents:,}",
            f"{documents / histogram.counted:.1%}",
            f"{tokens / total:.1%}",
            _bar(documents / largest),
        )
        for low, high, documents, tokens in histogram.bins
    ]
    quantiles = ", ".join(f"{name} {value:,}" for name, value in histogram.quantiles)
    return [*aligned([header, *table]), f"{quantiles} ({histogram.counted:,} documents of {facts.split})"]


def _bar(share: float) -> str:
    eighths = round(share * BAR * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).strip().ljust(BAR)


def _document(view: DocumentView, facts: Facts, style: Style) -> list[str]:
    documents = facts.manifest.splits[facts.split].documents
    title = f"document {view.number:,} of {documents:,} in {facts.split}: {view.tokens:,} tokens"
    title += f", from {view.source}" if view.source else ""
    return [style.paint(title, BOLD), *_flow(view.pieces, style), *_hidden(view.hidden, style)]


def _row(view: RowView, facts: Facts, style: Style, timestep: float) -> list[str]:
    shown_as = f", used as sample {view.sample:,} with seed {facts.seed}" if view.sample is not None else ""
    rows = facts.manifest.splits[facts.split].rows
    title = (
        f"row {view.number:,} of {rows:,} in {facts.split}{shown_as}: {view.tokens:,} tokens, {view.padding:,} padding"
    )
    lines = [style.paint(title, BOLD)]
    for masked, heading in ((None, "unmasked"), (timestep, f"masked at t = {timestep:g}")):
        lines.append(style.paint(heading, DIM))
        for part in view.parts:
            note = "".join(f"; {each}" for each in (part.note, part.source and f"from {part.source}") if each)
            lines.append(style.paint(f"┌ document {part.number:,}, {part.tokens:,} tokens{note}", DIM))
            lines += _flow(part.pieces, style, masked)
        lines += _hidden(view.hidden, style)
        if view.padding and not view.hidden:
            lines.append(style.paint(f"┌ padding, {view.padding:,} tokens: never masked, not in the loss", DIM))
    return lines


def _hidden(tokens: int, style: Style) -> list[str]:
    return [style.paint(f"  ... {tokens:,} more tokens; see --max-tokens", DIM)] if tokens else []


def _flow(pieces: Iterable[Piece], style: Style, timestep: float | None = None) -> Iterator[str]:
    """Pieces as lines of the style's width, neighbouring tokens in different colours. Line ends are shown and break the line."""
    line, used = "", 0
    for number, piece in enumerate(pieces):
        masked = timestep is not None and piece.draw < timestep
        text = "".join(VISIBLE.get(c, c) for c in piece.text)
        if masked:
            text = "░" * max(1, len(text))
        code = MASKED if masked else SPECIAL if piece.special else TINTS[number % 2]
        while used + len(text) > style.width - 2:
            room = style.width - 2 - used
            yield "│ " + line + style.paint(text[:room], code)
            line, used, text = "", 0, text[room:]
        line, used = line + style.paint(text, code), used + len(text)
        if piece.text.endswith("\n"):
            yield "│ " + line
            line, used = "", 0
    if line:
        yield "│ " + line

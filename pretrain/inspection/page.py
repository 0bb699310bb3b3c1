"""Facts about a prepared folder as one self-contained HTML page."""

from collections.abc import Iterable
from html import escape

from pretrain.inspection.facts import DocumentView, Facts, Histogram, RowView
from pretrain.inspection.html import HERE, cards, document, label, section, short, size_of, table, visible
from pretrain.inspection.pieces import Piece

DOCUMENT_COLOURS = 5
CHART_WIDTH, CHART_HEIGHT, CHART_FOOT = 960, 230, 34


def page(facts: Facts, timestep: float) -> str:
    """The page. The slider starts at `timestep`; without JavaScript the rows are shown unmasked."""
    parts = [
        _head(facts),
        section("Splits", _splits(facts)),
        section("Sources", _sources(facts)),
        section("Tokens per document", _chart(facts.histogram), _quantiles(facts)),
        section("Documents", *(_document(view, facts) for view in facts.documents)) if facts.documents else "",
        section("Rows", _controls(facts, timestep), *(_row(view, facts) for view in facts.rows)) if facts.rows else "",
    ]
    script = (HERE / "page.js").read_text(encoding="utf-8") if facts.rows else ""
    return document(str(facts.folder), parts, script)


def _head(facts: Facts) -> str:
    manifest = facts.manifest
    splits = manifest.splits.values()
    figures = [
        (short(sum(s.documents for s in splits)), "documents"),
        (short(sum(s.tokens for s in splits)), "tokens"),
        (f"{sum(s.bytes for s in splits) / sum(s.tokens for s in splits):.2f}", "bytes per token"),
        (f"{manifest.seq_len:,}", f"tokens per row, {manifest.packing.replace('_', ' ')}"),
        (f"{facts.filled(facts.split):.2%}", f"of {facts.split} rows filled"),
        (f"{manifest.vocab_size:,}", f"token ids, {manifest.tokenizer.kind}"),
    ]
    ids = manifest.tokenizer
    return (
        f"<h1>{escape(str(facts.folder))}</h1>\n<p>Prepared text. End of document is id {ids.eod_id}, padding {ids.pad_id}, "
        f"[MASK] {ids.mask_id}.</p>\n{cards(figures)}"
    )


def _splits(facts: Facts) -> str:
    header = ("split", "documents", "text", "tokens", "rows", "filled", "padding", "dropped tokens", "shards")
    rows = [
        (
            escape(name),
            f"{split.documents:,}",
            size_of(split.bytes),
            f"{split.tokens:,}",
            f"{split.rows:,}",
            f"{facts.filled(name):.2%}",
            f"{split.padded_tokens:,}",
            f"{split.dropped_tokens:,}",
            f"{len(split.shards):,}",
        )
        for name, split in facts.manifest.splits.items()
    ]
    left_out = [f"{cause}: {count:,}" for cause, count in facts.manifest.records.items()]
    note = f"<p>Records left out: {escape(', '.join(left_out))}.</p>" if left_out else ""
    return table(header, rows) + note


def _sources(facts: Facts) -> str:
    header = ("input", "files", "on disk", "documents", "tokens", "left out", f"share of {facts.share_of}", "")
    rows = [
        (
            escape(each.input),
            f"{each.files:,}",
            size_of(each.bytes),
            f"{each.documents:,}",
            "?" if each.tokens is None else f"{each.tokens:,}",
            escape(", ".join(f"{count:,} {cause}" for cause, count in (each.rejected or {}).items())),
            f"{share:.1%}",
            f'<span class="bar" style="width:{share:.2%}"></span>',
        )
        for each, share in facts.sources
    ]
    return table(header, rows, grow=True)


def _chart(histogram: Histogram) -> str:
    """Two bars per bin: its share of the documents and of the tokens."""
    total = sum(tokens for *_, tokens in histogram.bins)
    shares = [(d / histogram.counted, t / total) for *_, d, t in histogram.bins]
    top = max(max(pair) for pair in shares)
    step, floor = CHART_WIDTH / len(shares), CHART_HEIGHT - CHART_FOOT
    parts = [f'<line class="axis" x1="0" x2="{CHART_WIDTH}" y1="{floor}" y2="{floor}"/>']
    for i, ((low, high, documents, tokens), pair) in enumerate(zip(histogram.bins, shares, strict=True)):
        for offset, kind, share in zip((0.12, 0.5), "ab", pair, strict=True):
            height = (floor - 24) * share / top
            parts.append(
                f'<rect class="{kind}" x="{(i + offset) * step:.1f}" y="{floor - height:.1f}" width="{step * 0.36:.1f}" '
                f'height="{height:.1f}" rx="2"><title>{low:,} to {high:,} tokens: {documents:,} documents ({pair[0]:.2%}), '
                f"{tokens:,} tokens ({pair[1]:.2%})</title></rect>"
            )
            if share >= 0.01:
                parts.append(label((i + offset + 0.18) * step, floor - height - 5, f"{share:.0%}"))
        parts.append(label((i + 0.5) * step, CHART_HEIGHT - 14, short(low) if high > low else str(low)))
    return (
        f'<p><span class="key" style="background:var(--bar)"></span>share of documents'
        '<span class="key" style="background:var(--bar2)"></span>share of tokens</p>\n'
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="Histogram of tokens per document">'
        + "".join(parts)
        + "</svg>"
    )


def _quantiles(facts: Facts) -> str:
    named = ", ".join(f"{name} {value:,}" for name, value in facts.histogram.quantiles)
    counted = f"{facts.histogram.counted:,} documents of {escape(facts.split)}"
    return f"<p>{named}. {counted}; the label under a bin is its smallest length.</p>"


def _document(view: DocumentView, facts: Facts) -> str:
    documents = facts.manifest.splits[facts.split].documents
    place = f"in {escape(facts.split)}, {view.tokens:,} tokens"
    place += f", from {escape(str(view.source))}" if view.source else ""
    return (
        f"<h3>Document {view.number:,} of {documents:,} <span class=soft>{place}</span></h3>\n"
        f'<div class="text">{_pieces(view.pieces)}{_hidden(view.hidden)}</div>'
    )


def _controls(facts: Facts, timestep: float) -> str:
    return (
        "<p>Each document of a row has its own colour, and neighbouring tokens have different backgrounds. A token is masked "
        f"where its random number is below t; the numbers are those of a run with seed {facts.seed}. Hover over a masked token to "
        "read it.</p>\n"
        '<div class="controls"><label for="t">timestep t</label>'
        f'<input id="t" type="range" min="0" max="1" step="0.01" value="{timestep:g}"><output id="shown"></output></div>'
    )


def _row(view: RowView, facts: Facts) -> str:
    rows = facts.manifest.splits[facts.split].rows
    met = f", used as sample {view.sample:,}" if view.sample is not None else ""
    facts_of_row = f"{view.documents:,} document{'s' * (view.documents != 1)}{met}"
    parts = []
    for number, part in enumerate(view.parts):
        note = "".join(f", {each}" for each in (part.note, part.source and f"from {escape(str(part.source))}") if each)
        parts.append(
            f'<div class="doc{" cut" if part.note else ""}" style="--d:var(--d{number % DOCUMENT_COLOURS})">'
            f'<span class="label">document {part.number:,}: {part.tokens:,} tokens{note}</span>'
            f"{_pieces(part.pieces, draws=True)}</div>"
        )
    parts.append(_hidden(view.hidden))
    if view.padding:
        parts.append(f'<div class="padding">{view.padding:,} padding tokens: never masked, not in the loss</div>')
    return (
        f'<div class="row"><h3>Row {view.number:,} of {rows:,} <span class=soft>{facts_of_row}; '
        '<span class="count"></span></span></h3>\n'
        f'<div class="text">{"".join(parts)}</div></div>'
    )


def _pieces(pieces: Iterable[Piece], draws: bool = False) -> str:
    parts = []
    for piece in pieces:
        draw = (
            f' data-u="{piece.draw:.6f}"' + (f' data-n="{piece.tokens}"' if piece.tokens > 1 else "") if draws else ""
        )
        kind = ' class="s"' if piece.special else ""
        parts.append(f"<i{kind}{draw}>{visible(piece.text)}</i>")
    return "".join(parts)


def _hidden(tokens: int) -> str:
    return f'<div class="more">… {tokens:,} more tokens</div>' if tokens else ""

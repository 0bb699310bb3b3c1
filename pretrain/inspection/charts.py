"""Line charts with error bars as inline SVG."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from pretrain.inspection.html import label

Error = float | tuple[float, float] | None
"""A standard error, or the ends of an interval."""

Place = Callable[[float, float], tuple[float, float]]
"""(x, y) -> where it is in the picture."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 720, 290, 84, 30, 20, 58
COLOURS = 5


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: in the legend.
        points: x, y and its error.
        colour: number of a colour; curves of the same run have the same.
        dashed: distinguishes a second curve of a run.
        labels: a word at each point; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float, Error]]
    colour: int = 0
    dashed: bool = False
    labels: Sequence[str] = ()


def line_chart(
    lines: Sequence[Line], x_label: str, y_label: str, whole: bool = False, logarithmic: bool = False
) -> str:
    """A legend and a chart; a sentence if there is nothing to draw.

    Args:
        whole: x counts something.
        logarithmic: equal factors of x are equally far apart; x is above 0.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return "<p>Nothing to draw yet.</p>"
    places, scale = [x for line in lines for x, _, _ in line.points], log10 if logarithmic else float
    xs = _powers(places) if logarithmic else _ticks(places, least=1.0 if whole else 0.0)
    ys = _ticks([end for line in lines for _, y, error in line.points for end in _ends(y, error)])

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (scale(x) - scale(xs[0])) / (scale(xs[-1]) - scale(xs[0])), (y - ys[0]) / (ys[-1] - ys[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - FOOT - up * (HEIGHT - FOOT - TOP)

    parts = []
    for y in ys:
        height = at(xs[0], y)[1]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    parts += [label(at(x, ys[0])[0], HEIGHT - FOOT + 22, _number(x)) for x in xs]
    parts.append(label((LEFT + WIDTH) / 2, HEIGHT - 6, escape(x_label)))
    for line in lines:
        parts += _drawn(line, [(*at(x, y), y, error, x) for x, y, error in line.points], ys, at)
    legend = "".join(f'<span class="key" style="{_key(line)}"></span>{escape(line.name)}' for line in lines)
    says = f"{escape(y_label)} against {escape(x_label)}"
    picture = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{says}">'
    return f'<p class="legend">{escape(y_label)}: {legend}</p>\n<div class="wide">{picture}{"".join(parts)}</svg></div>'


def interval_chart(rows: Sequence[tuple[str, float, Error]], x_label: str) -> str:
    """Estimates and their intervals below each other, (name, value, error), with a line at 0."""
    xs = _ticks([0.0, *(end for _, value, error in rows for end in _ends(value, error))])
    left, foot = 20 + 7.5 * max(len(name) for name, *_ in rows), TOP + 24 * len(rows)

    def at(x: float) -> float:
        return left + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - left - RIGHT)

    parts = [label(at(x), foot + 22, _number(x)) for x in xs] + [label((left + WIDTH) / 2, foot + 48, escape(x_label))]
    for x in xs:
        dash = "" if x == 0 else ' stroke-dasharray="2 4"'
        parts.append(f'<line class="axis" x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{TOP}" y2="{foot}"{dash}/>')
    for number, (name, value, error) in enumerate(rows):
        y = TOP + 24 * number + 12
        low, high = map(at, _ends(value, error))
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="var(--d0)" stroke-width="2"/>')
        title = f"{escape(name)}: {value:.4f}{_spread(error) if error else ''}"
        parts.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="4" fill="var(--d0)"><title>{title}</title></circle>')
    says = f"{escape(x_label)}, {len(rows)} intervals"
    picture = f'<svg class="chart" viewBox="0 0 {WIDTH} {foot + 58}" role="img" aria-label="{says}">'
    return f'<div class="wide">{picture}{"".join(parts)}</svg></div>'


def _drawn(
    line: Line, points: Sequence[tuple[float, float, float, Error, float]], ys: Sequence[float], at: Place
) -> Iterable[str]:
    """The curve, its error bars, and its points with what they say when pointed at."""
    colour = f"var(--d{line.colour % COLOURS})"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in points)
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
    for x, y, value, error, place in points:
        if error:
            low, high = (at(place, end)[1] for end in _ends(value, error))
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>'
        if len(points) <= 60:
            spread = _spread(error) if error else ""
            title = f"{escape(line.name)}, {_number(place)}: {value:.4f}{spread}"
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" fill="{colour}"><title>{title}</title></circle>'
    for (x, y, *_), word in zip(points, line.labels, strict=False):
        yield label(x, y + (20 if line.dashed else -9), escape(word))


def _ends(value: float, error: Error) -> tuple[float, float]:
    """Of an error bar."""
    return error if isinstance(error, tuple) else (value - (error or 0.0), value + (error or 0.0))


def _spread(error: float | tuple[float, float]) -> str:
    return f" ({error[0]:.4f} to {error[1]:.4f})" if isinstance(error, tuple) else f" ± {error:.4f}"


def _key(line: Line) -> str:
    colour = f"var(--d{line.colour % COLOURS})"
    return f"background:{f'repeating-linear-gradient(90deg,{colour} 0 4px,transparent 4px 7px)' if line.dashed else colour}"


def _ticks(values: Sequence[float], least: float = 0.0) -> list[float]:
    """A few round numbers that contain all values, at least `least` apart."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5 * abs(low), high + (0.5 * abs(high) or 1)
    step = 10 ** floor(log10(high - low))
    step = max(least, next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6))
    first, last = floor(low / step), -floor(-high / step)
    return [i * step for i in range(first, last + 1)]


def _powers(values: Sequence[float]) -> list[float]:
    """1, 2 or 5 times powers of ten that contain all values, at least two."""
    low, high = floor(log10(min(values))), floor(log10(max(values)))
    numbers = [factor * 10.0**power for power in range(low, high + 2) for factor in (1, 2, 5)]
    first = max(i for i, number in enumerate(numbers) if number <= min(values) or i == 0)
    last = min(i for i, number in enumerate(numbers) if number >= max(values) and i > first)
    return numbers[first : last + 1]


def _number(value: float) -> str:
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4g}"
    exponent = floor(log10(abs(value)))
    return f"{value / 10**exponent:.3g}e{exponent}"

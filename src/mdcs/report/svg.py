"""Charts as SVG text, coloured by the page's style sheet: classes s0 (ensemble), s1, s2 ... (experts)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 46
MANY = 50  # dots that get a line of means
COLOURS = 8  # how many series the style sheet tells apart

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From data to pixels: `low` and `high` lie at `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(number) if self.log else number for number in (self.low, self.high, value))
        return self.start + (at - low) / ((high - low) or 1) * (self.end - self.start)


def x_axis(low: float, high: float, log: bool = False) -> Axis:
    """Across the plot."""
    return Axis(low, high, LEFT, WIDTH - RIGHT, log)


def y_axis(low: float, high: float) -> Axis:
    """Up the plot."""
    return Axis(low, high, HEIGHT - BOTTOM, TOP)


def series(number: int) -> str:
    """The style of a series: 0 is the ensemble."""
    return f"s{number}" if number < COLOURS else f"s{(number - 1) % (COLOURS - 1) + 1}"


def svg(key: str, title: str, description: str, body: str, *, width: int = WIDTH, height: int = HEIGHT, role: str = "img") -> str:
    """The whole element; `key` must differ between the charts of a page."""
    narrow = ' class="narrow"' if width < WIDTH else ""
    return (
        f'<svg{narrow} viewBox="0 0 {width} {height}" role="{role}" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>{body}</svg>'
    )


def frame(x: Axis, y: Axis, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_label: str, y_label: str) -> str:
    """Grid, tick labels and axis labels."""
    floor, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    lines = "".join(f"M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" for value in y_ticks)
    parts = [f'<path class="grid" d="{lines}"/>']
    parts += [f'<text class="tick" x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{escape(t)}</text>' for v, t in y_ticks.items()]
    parts += [f'<text class="tick" x="{x(v):.1f}" y="{floor + 17}" text-anchor="middle">{escape(t)}</text>' for v, t in x_ticks.items()]
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    up = f'transform="translate(13 {(TOP + floor) / 2}) rotate(-90)"'
    parts.append(f'<text class="label" {up} text-anchor="middle">{escape(y_label)}</text>')
    return "".join(parts)


PERCENT = {float(value): str(value) for value in (0, 25, 50, 75, 100)}


def ticks(low: float, high: float, most: int = 5, least: float = 0.0) -> dict[float, str]:
    """Round numbers from `low` to `high`, at least `least` apart: 1 for what is counted."""
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / most))
    step = max(least, next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most))
    values = [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return {value: f"{value:g}" for value in values}


def log_ticks(low: float, high: float) -> dict[float, str]:
    """1, 10, 100 ... that lie between; and 2 and 5 times them if those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = {10.0**p: f"{10**p:,}" for p in powers if p >= 0 and low <= 10**p <= high}
    more = {factor * 10.0**p: f"{factor * 10**p:,}" for p in powers for factor in (1, 2, 5) if p >= 0 and low <= factor * 10**p <= high}
    return tens if len(tens) > 2 else more


def scatter(key: str, title: str, description: str, points: Sequence[Point], labels: tuple[str, str]) -> str:
    """Dots at (x > 0 on a logarithmic axis, per cent): one tab stop, whose arrow keys go from dot to dot, in the order given.

    Where dots are many, a line shows the means of neighbours.
    """
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    x, y = x_axis(low / 1.15, high * 1.15, log=True), y_axis(0, 100)
    radius = 5 if len(points) < 200 else 3.5 if len(points) < 2000 else 2.5
    dots = "".join(f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="{radius}"/>' for at, value in points)
    name = escape(f"{title}: {len(points)} dots; arrow keys go from one to the next, Enter shows it in the table")
    style = "dots sparse" if len(points) < 200 else "dots"
    body = frame(x, y, log_ticks(low / 1.15, high * 1.15), PERCENT, *labels)
    body += f'<g class="{style}" tabindex="0" role="application" aria-label="{name}">{dots}</g>'
    body += polyline(trend(points), x, y, 2) if len(points) >= MANY else ""
    return svg(key, title, description, body, role="group")


def trend(points: Sequence[Point], parts: int = 12) -> list[Point]:
    """Means of the points in `parts` sets of about as many each, by x; x is averaged in its logarithm."""
    ordered, means = sorted(points), []
    for part in range(parts):
        of = ordered[part * len(ordered) // parts : (part + 1) * len(ordered) // parts]
        means.append((math.exp(sum(math.log(x) for x, _ in of) / len(of)), sum(value for _, value in of) / len(of)))
    return means


def bars(key: str, title: str, description: str, groups: Mapping[str, Sequence[float | None]], y_label: str) -> str:
    """One cluster a group, one bar a series in per cent, "n/a" where there is none."""
    floor, y, cluster = HEIGHT - BOTTOM, y_axis(0, 100), (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    parts = []
    for g, values in enumerate(groups.values()):
        width = min(40.0, (cluster - 16) / len(values))
        for j, value in enumerate(values):
            left = LEFT + cluster * (g + 0.5) + width * (j - len(values) / 2)
            middle, top = left + width / 2, floor if value is None else y(value)
            if value is not None:
                parts.append(
                    f'<rect class="{series(j)}" x="{left + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{floor - top:.1f}"/>'
                )
            said = "n/a" if value is None else f"{value:.0f}"
            parts.append(f'<text class="value" x="{middle:.1f}" y="{top - 4:.1f}" text-anchor="middle">{said}</text>')
    x = Axis(0, len(groups), LEFT, WIDTH - RIGHT)
    names = {g + 0.5: name for g, name in enumerate(groups)}
    body = frame(x, Axis(0, 100, floor, TOP + 8), names, {}, "classes by training pictures (how many)", y_label)
    return svg(key, title, description, body + "".join(parts))


def lines(
    key: str, title: str, description: str, curves: Sequence[tuple[int, Sequence[Point]]], labels: tuple[str, str], y: Axis | None = None
) -> str:
    """Polylines (style, points) over what is counted; without `y` the axis spans the values, from 0 where that is near."""
    xs, ys = ([point[i] for _, points in curves for point in points] for i in (0, 1))
    low = 0.0 if min(ys) >= 0 and min(ys) < 0.5 * max(ys) else min(ys)
    x, y = x_axis(min(xs), max(xs)), y or y_axis(low, max(ys) if max(ys) > low else low + 1)
    body = frame(x, y, ticks(x.low, x.high, least=1), ticks(y.low, y.high), *labels)
    return svg(key, title, description, body + "".join(polyline(points, x, y, number) for number, points in curves))


def polyline(points: Sequence[Point], x: Axis, y: Axis, number: int) -> str:
    """A line through the points; a single one becomes a dot."""
    if len(points) == 1:
        return f'<circle class="{series(number)}" cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="4"/>'
    return f'<polyline class="{series(number)}" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)}"/>'


def categories(
    key: str, title: str, description: str, names: Sequence[str], curves: Sequence[tuple[int, Sequence[float | None]]], lowest: float
) -> str:
    """Lines over named positions, in per cent, with a dot at each value. The axis begins above 0 where `lowest` of all is above 50."""
    low = 0.0 if lowest < 50 else 10 * math.floor(lowest / 10)
    x, y = Axis(0, max(len(names) - 1, 1), LEFT + 14, WIDTH - RIGHT - 14), y_axis(low, 100)
    frequencies = "class frequencies that the pictures are weighted to"
    parts = [frame(x, y, {float(i): name for i, name in enumerate(names)}, ticks(low, 100), frequencies, "accuracy in %")]
    for number, values in curves:
        points = [(float(i), value) for i, value in enumerate(values) if value is not None]
        parts.append(polyline(points, x, y, number) if len(points) > 1 else "")
        parts += [f'<circle class="{series(number)}" cx="{x(i):.1f}" cy="{y(value):.1f}" r="3"/>' for i, value in points]
    return svg(key, title, description, "".join(parts))


def reliability(key: str, title: str, description: str, bins: Sequence[Mapping[str, float | None]]) -> str:
    """Accuracy over confidence: a dot a bin, its area the share of pictures, on top of the bin's bar; the diagonal is calibrated."""
    x, y = x_axis(0, 100), y_axis(0, 100)
    total = sum(row["count"] or 0 for row in bins) or 1
    parts = [
        frame(x, y, PERCENT, PERCENT, "confidence in %", "accuracy in %"),
        f'<path class="diagonal" d="M{x(0)} {y(0)}L{x(100)} {y(100)}"/>',
    ]
    for b, row in enumerate(bins):
        confidence, accuracy, count = row["confidence"], row["accuracy"], row["count"]
        if confidence is None or accuracy is None or not count:
            continue
        left, right, top = x(100 * b / len(bins)), x(100 * (b + 1) / len(bins)), y(100 * accuracy)
        parts.append(f'<rect class="bin" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" height="{y(0) - top:.1f}"/>')
        radius = 3 + 11 * math.sqrt(count / total)
        parts.append(f'<circle class="s0 soft" cx="{x(100 * confidence):.1f}" cy="{top:.1f}" r="{radius:.1f}"/>')
    return svg(key, title, description, "".join(parts))


def matrix(key: str, title: str, description: str, names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """Squares shaded by values in [0, 1], with the per cent written in."""
    side = min(64.0, 300 / len(names))
    left, top, parts = 96.0, 28.0, []
    for j, row in enumerate(values):
        middle = side * (j + 0.5)
        parts.append(f'<text class="tick" x="{left - 8}" y="{top + middle + 4:.1f}" text-anchor="end">{escape(names[j])}</text>')
        parts.append(f'<text class="tick" x="{left + middle:.1f}" y="20" text-anchor="middle">{escape(names[j].split()[-1])}</text>')
        for k, value in enumerate(row):
            where = f'x="{left + side * k:.1f}" y="{top + side * j:.1f}" width="{side - 2:.1f}" height="{side - 2:.1f}"'
            # Not darker than this, so that the writing can be read in light and in dark.
            parts.append(f'<rect class="cell" {where} fill-opacity="{0.08 + 0.5 * value:.2f}"/>')
            if side > 22:
                at = f'x="{left + side * (k + 0.5) - 1:.1f}" y="{top + middle + 4:.1f}"'
                parts.append(f'<text {at} text-anchor="middle">{100 * value:.0f}</text>')
    return svg(key, title, description, "".join(parts), width=int(left + 8 + side * len(names)), height=int(top + 8 + side * len(names)))

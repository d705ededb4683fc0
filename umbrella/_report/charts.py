"""Charts as HTML: an SVG that stretches to its box, under labels that do not. Readable without the script (hover).

The SVG's coordinates run from 0 to 1000 both ways and its strokes do not scale, so a chart fits any width while its
text keeps its size. A point is a line of no length with a round cap: it stays a disc however the box is stretched.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from umbrella._report.text import num

MOST_POINTS = 500  # per line
MOST_DOTS = 4000  # per scatter
COLOURS = 10  # --s0 ... --s9 of the style sheet


class Series(NamedTuple):
    """A line. x, y f64[N], with gaps where y is not finite; low, high f64[N]: a band, or None; slot: its colour."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    slot: int = 0
    dashed: bool = False


def lines(series: Sequence[Series], *, x_label: str, y_label: str, alt: str) -> Markup:
    """A line chart with a legend, and a logarithmic twin when the values are positive and span more than 4 to 1."""
    series = [thin(s) for s in series]
    y = _finite(np.concatenate([v for s in series for v in (s.y, s.low, s.high) if v is not None] or [np.empty(0)]))
    x = _finite(np.concatenate([s.x for s in series] or [np.empty(0)]))
    if not len(x) or not len(y):
        return Markup('<p class="empty">No finite value was logged.</p>')
    plots = [_plot(series, x, y, False, x_label, y_label, alt)]
    switch = Markup("")
    if y.min() > 0 and y.max() > 4 * y.min():
        plots.append(_plot(series, x, y, True, x_label, y_label, alt + ", logarithmic"))
        switch = Markup('<label class="switch"><input type="checkbox"> log scale</label>')
    keys = Markup("").join(
        Markup('<li><i class="key{}" style="--c:var(--s{})"></i>{}</li>').format(
            " dashed" if s.dashed else "", s.slot % COLOURS, s.name
        )
        for s in series
    )
    head = Markup('<div class="chart-head"><ul class="legend">{}</ul>{}</div>').format(keys, switch)
    return Markup('<div class="chart">{}{}</div>').format(head, Markup("").join(plots))


def scatter(points: np.ndarray, labels: np.ndarray, names: Sequence[str], alt: str) -> Markup:
    """Points by class: f64[N, 2], i64[N]. Each class has a colour, and its name stands at its median."""
    keep = np.isfinite(points).all(axis=1)
    points, labels = points[keep], labels[keep]
    if not len(points):
        return Markup('<p class="empty">No finite point.</p>')
    stride = -(-len(points) // MOST_DOTS)
    points, labels = points[::stride], labels[::stride]
    xa, ya = _Axis.of(points[:, 0], False, pad=0.04), _Axis.of(points[:, 1], False, pad=0.04)
    dots, tags, keys = [], [], []
    for slot, label in enumerate(np.unique(labels)):
        of = points[labels == label]
        name = names[label] if 0 <= label < len(names) else str(label)
        path = "".join(f"M{px:.0f} {py:.0f}h0" for px, py in zip(xa.at(of[:, 0]), 1000 - ya.at(of[:, 1]), strict=True))
        colour = slot % COLOURS
        dots.append(
            Markup('<path class="dot" data-class="{}" style="--c:var(--s{})" d="{}"/>').format(slot, colour, path)
        )
        mx, my = xa.at(np.median(of[:, 0])) / 10, 100 - ya.at(np.median(of[:, 1])) / 10
        tags.append(Markup('<b style="left:{}%;top:{}%">{}</b>').format(f"{mx:.1f}", f"{my:.1f}", name))
        keys.append(
            Markup('<li data-class="{}"><i class="key disc" style="--c:var(--s{})"></i>{}</li>').format(
                slot, colour, name
            )
        )
    ratio = min(1.8, max(0.9, (xa.high - xa.low) / (ya.high - ya.low)))
    return Markup(
        '<div class="chart scatter"><div class="chart-head"><ul class="legend">{}</ul></div>'
        '<div class="plot"><div class="ys">{}</div><div class="area" style="aspect-ratio:{};height:auto">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
        '<div class="tags" aria-hidden="true">{}</div></div><div class="xs">{}</div></div></div>'
    ).format(
        Markup("").join(keys), ya.labels("top"), f"{ratio:.2f}", alt, ya.grid(), Markup("").join(dots),
        Markup("").join(tags) if len(tags) <= 20 else "", xa.labels("left"),
    )  # fmt: skip


def thin(s: Series, most: int = MOST_POINTS) -> Series:
    """At most about `most` points of a line: of each stretch its lowest and highest, so no spike is lost."""
    n = len(s.x)
    if n <= most:
        return s
    keep = {0, n - 1}
    for part in np.array_split(np.arange(n), most // 2):
        values = np.where(np.isfinite(s.y[part]), s.y[part], np.nan)
        if np.isfinite(values).any():
            keep |= {int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)])}
        keep.add(int(part[0])) if not np.isfinite(values).all() else None
    at = np.array(sorted(keep))
    return s._replace(
        x=s.x[at], y=s.y[at], low=None if s.low is None else s.low[at], high=None if s.high is None else s.high[at]
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high].

    >>> ticks(0, 100), ticks(0.12, 0.31)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.15, 0.2, 0.25, 0.3])
    """
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [float(f"{(first + i) * step:.12g}") for i in range(count)]


class _Axis(NamedTuple):
    low: float
    high: float
    marks: list[float]
    log: bool

    @classmethod
    def of(cls, values: np.ndarray, log: bool, pad: float = 0.0) -> "_Axis":
        low, high = float(np.min(values)), float(np.max(values))
        if log:
            low, high = math.log10(low), math.log10(high)
        if high <= low:
            margin = 0.5 * abs(low) or 0.5
            low, high = low - margin, high + margin
        margin = pad * (high - low)
        low, high = low - margin, high + margin
        return cls(low, high, _log_marks(low, high) if log else ticks(low, high), log)

    def at(self, values: Any) -> Any:
        """Where `values` lie, 0 to 1000."""
        with np.errstate(invalid="ignore", divide="ignore"):
            v = np.log10(values) if self.log else values
            return 1000 * (v - self.low) / (self.high - self.low)

    def labels(self, side: str) -> Markup:
        spot = Markup('<span{} style="{}:{}%">{}</span>')
        place = [float(100 - self.at(m) / 10 if side == "top" else self.at(m) / 10) for m in self.marks]
        last = Markup(' class="last"')  # a label at the right edge stays inside the chart
        texts = (num(int(m) if m == int(m) and abs(m) < 1e15 else m) for m in self.marks)
        return Markup("").join(
            spot.format(last if side == "left" and p > 97 else "", side, f"{p:.2f}", t)
            for p, t in zip(place, texts, strict=True)
        )

    def grid(self) -> Markup:
        d = "".join(f"M0 {1000 - self.at(m):.1f}H1000" for m in self.marks)
        return Markup('<path class="grid" d="{}"/>').format(d)


def _log_marks(low: float, high: float) -> list[float]:
    """Marks between the powers of ten low and high: 1, 2, 5 of each decade, whole decades when there are many."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    marks = [float(f"{m * 10.0**d:.12g}") for d in decades for m in steps if low <= math.log10(m) + d <= high]
    marks = marks[:: -(-len(marks) // 7)] if marks else marks
    return marks if len(marks) > 1 else ticks(10**low, 10**high)


def _plot(
    series: Sequence[Series], x: np.ndarray, y: np.ndarray, log: bool, x_label: str, y_label: str, alt: str
) -> Markup:
    near_zero = 0 < x.min() < 0.1 * x.max()
    xa, ya = _Axis.of(np.append(x, 0.0) if near_zero else x, False), _Axis.of(y, log, pad=0.05)
    bands, paths = [], []
    for s in series:
        px, py = xa.at(s.x), 1000 - ya.at(s.y)
        style = Markup('style="--c:var(--s{})"').format(s.slot % COLOURS)
        if s.low is not None and s.high is not None:
            d = _area(px, 1000 - ya.at(s.low), 1000 - ya.at(s.high))
            bands.append(Markup('<path class="band" {} d="{}"/>').format(style, d))
        kind = "line dashed" if s.dashed else "line"
        paths.append(Markup('<path class="{}" {} d="{}"/>').format(kind, style, _polyline(px, py)))
        if np.isfinite(py).sum() <= 40 and len(px) != 2:
            d = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(px, py, strict=True) if math.isfinite(a + b))
            paths.append(Markup('<path class="mark" {} d="{}"/>').format(style, d))
    body = Markup("").join([*bands, *paths])
    return Markup(
        '<div class="plot{}" data-plot="{}"><div class="y-label">{}</div><div class="ys">{}</div>'
        '<div class="area">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg></div>'
        '<div class="xs">{}</div><div class="x-label">{}</div></div>'
    ).format(
        " log" if log else "", _data(series, xa, ya, x_label), y_label, ya.labels("top"), alt, ya.grid(), body,
        xa.labels("left"), x_label,
    )  # fmt: skip


def _data(series: Sequence[Series], xa: _Axis, ya: _Axis, x_label: str) -> str:
    """What hover needs: for each line its place (0 to 1) and its texts."""
    out = []
    for s in series:
        texts = [
            num(v) if s.low is None or s.high is None else f"{num(v)}  ({num(s.low[i])} – {num(s.high[i])})"
            for i, v in enumerate(s.y)
        ]
        at = [round(float(v) / 1000, 4) if math.isfinite(v) else None for v in xa.at(s.x)]
        up = [round(float(v) / 1000, 4) if math.isfinite(v) else None for v in ya.at(s.y)]
        out.append(
            {"name": s.name, "slot": s.slot % COLOURS, "at": at, "up": up, "x": [num(v) for v in s.x], "y": texts}
        )
    return json.dumps({"x": x_label, "series": out}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _polyline(px: np.ndarray, py: np.ndarray) -> str:
    parts, pen = [], "M"
    for a, b in zip(px, py, strict=True):
        if not math.isfinite(a + b):
            pen = "M"
            continue
        parts.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L"
    return "".join(parts)


def _area(px: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    keep = np.isfinite(px) & np.isfinite(low) & np.isfinite(high)
    px, low, high = px[keep], low[keep], high[keep]
    if not len(px):
        return ""
    return _polyline(px, high) + _polyline(px[::-1], low[::-1]).replace("M", "L", 1) + "Z"


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]

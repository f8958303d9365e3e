"""Plots as SVG: small, with a text for every mark, and colours that follow the page or, alone, the reader's preference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from .curves import PEER, Errors, Family

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 34
FEW = 5                                          # labels on an axis, about
TALL = 6.0                                       # a range that is this many times that of the middle of a curve is cut
NAMES = {"value": "loss", "gradient": "gradient", "hessian": "second derivative"}
TOP_ULP = 2.0**24                                # no digit of a float32 is right
LEAST_ULP = 0.1
ULPS = ((1.0, "1"), (1e2, "100"), (1e4, "10⁴"), (1e6, "10⁶"))
STYLE = """
svg.plot{font:11px system-ui,sans-serif;--ink:#1c2430;--faint:#66707d;--line:#d9dee5;--c0:#0b6e6e;--c1:#b4501e;--c2:#5b55b5;--c3:#8a6d00;
--ours:#0b6e6e;--peer:#d9541e;--plain:#98a1ad;--band:#e8ebf0}
@media(prefers-color-scheme:dark){svg.plot{--ink:#e5e9ef;--faint:#97a1af;--line:#333c48;--c0:#4fc3bd;--c1:#f08a5d;--c2:#a7a1f2;--c3:#d8b94a;
--ours:#4fc3bd;--peer:#ff8552;--plain:#5d6875;--band:#232b35}}
"""
RULES = """
svg.plot text{fill:var(--faint)}svg.plot .title{fill:var(--ink);font-weight:600}
svg.plot .grid{stroke:var(--line);stroke-width:1}svg.plot .zero{stroke:var(--faint);stroke-width:1;opacity:.55}
svg.plot .curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg.plot .k0{stroke:var(--c0)}svg.plot .k1{stroke:var(--c1);stroke-dasharray:6 3}svg.plot .k2{stroke:var(--c2);stroke-dasharray:2 3.5}
svg.plot .k3{stroke:var(--c3);stroke-dasharray:9 3 2 3}
svg.plot .ours{fill:var(--ours)}svg.plot .peer{fill:var(--peer)}svg.plot .plain{fill:var(--plain)}svg.plot .band{fill:var(--band)}
"""


@dataclass(frozen=True)
class Frame:
    """The area of a plot: numbers to places."""

    low: float
    high: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.bottom) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM)


def number(value: float) -> str:
    """A label of an axis."""
    text = f"{value:.6g}"
    if "e" in text:
        digits, _, power = text.partition("e")
        return f"{digits}e{int(power)}".replace("-", "−")
    return ("0" if float(text) == 0 else text).replace("-", "−")


def places(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def nice(low: float, high: float) -> list[float]:
    """Round numbers in a range, about FEW of them."""
    raw = (high - low) / FEW
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """The range of a vertical axis: all of the curves, or their middle where they run off."""
    finite = np.concatenate([c[np.isfinite(c)] for c in curves] or [np.zeros(1)])
    if not finite.size:
        return -1.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    first, last = (float(np.quantile(finite, q)) for q in (0.06, 0.94))
    if last > first and high - low > TALL * (last - first):
        low, high = max(low, first - 0.4 * (last - first)), min(high, last + 0.4 * (last - first))
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 1, high + 1
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def runs(positions: np.ndarray, values: np.ndarray, frame: Frame) -> Iterator[list[tuple[float, float]]]:
    """A curve as lines: broken where it is no number, and where it jumps."""
    tall = frame.top - frame.bottom
    steps = np.abs(np.diff(values))
    line: list[tuple[float, float]] = []
    for k, (x, y) in enumerate(zip(positions, values, strict=True)):
        around = [steps[j] for j in (k - 3, k - 2, k, k + 1) if 0 <= j < len(steps) and math.isfinite(steps[j])]
        jumps = k > 0 and math.isfinite(steps[k - 1]) and bool(around) and steps[k - 1] > max(0.08 * tall, 6 * float(np.median(around)))
        if (not math.isfinite(y) or jumps) and line:
            yield line
            line = []
        if math.isfinite(y):
            line.append((frame.x(x), frame.y(min(max(y, frame.bottom - 3 * tall), frame.top + 3 * tall))))
    if line:
        yield line


def path(line: Sequence[tuple[float, float]]) -> str:
    """A line as the data of a path."""
    return "M" + "L".join(f"{places(x)} {places(y)}" for x, y in line)


def axes(frame: Frame, title: str, below: str, across: Sequence[tuple[float, str]], up: Sequence[tuple[float, str]]) -> Iterator[str]:
    """Grid, labels and title."""
    for value, text in up:
        y = places(frame.y(value))
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 6}" y="{y}" dy="3.5" text-anchor="end">{text}</text>'
    for value, text in across:
        x = places(frame.x(value))
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield f'<text x="{x}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{text}</text>'
    yield f'<text class="title" x="{LEFT}" y="{TOP - 4}">{escape(title)}</text>'
    yield f'<text x="{places((LEFT + WIDTH - RIGHT) / 2)}" y="{HEIGHT - 5}" text-anchor="middle">{escape(below)}</text>'


def whole(inside: str, about: str, name: str, alone: bool, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The element: as a file of its own it carries its colours."""
    head = f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}"'
    if alone:
        return (f'{head} xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"><title>{escape(about)}</title>'
                f"<style>{STYLE}{RULES}</style>{inside}</svg>\n")
    return f"{head}>{inside}</svg>"


def title_of(what: str, name: str) -> str:
    """A result in a few signs."""
    return {"value": "loss", "gradient": f"∂ loss / ∂ {name}", "hessian": f"∂² loss / ∂ {name}²"}[what]


def panel(family: Family, what: str, clip: str) -> str:
    """One result of a family of curves."""
    curves = [c[what] for c in family.curves]
    low, high = float(family.positions[0]), float(family.positions[-1])
    frame = Frame(low, high, *limits(curves))
    parts = list(axes(frame, title_of(what, family.lines[0].name), family.lines[0].name, [(v, number(v)) for v in nice(low, high)],
                      [(v, number(v)) for v in nice(frame.bottom, frame.top)]))
    if frame.bottom < 0 < frame.top:
        parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{places(frame.y(0))}" y2="{places(frame.y(0))}"/>')
    area = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    parts.append(f'<clipPath id="{clip}"><rect {area}/></clipPath>')
    parts.append(f'<g clip-path="url(#{clip})">')
    for k, curve in reversed(list(enumerate(curves))):
        said = f"<title>{escape(family.by)} = {escape(family.labels[k])}</title>" if family.by else ""
        lines = "".join(map(path, runs(family.positions, curve, frame)))
        parts.append(f'<path class="curve k{k % 4}" d="{lines}">{said}</path>' if lines else "")
    return "".join([*parts, "</g>"])


def plot(family: Family, what: str, name: str, alone: bool = False) -> str:
    """A panel as an element of its own."""
    return whole(panel(family, what, f"{name}-{what}"), f"{NAMES[what]} along {family.lines[0].name}", name, alone)


def legend(family: Family, y: float) -> str:
    """The key to the curves, in a line."""
    parts, x = [], float(LEFT)
    for k, text in enumerate(family.labels):
        said = f"{family.by} = {text}"
        parts.append(f'<path class="curve k{k % 4}" d="M{places(x)} {places(y - 4)}h22"/>'
                     f'<text x="{places(x + 27)}" y="{places(y)}">{escape(said)}</text>')
        x += 45 + 6.2 * len(said)
    return "".join(parts)


def figure(family: Family, whats: Sequence[str]) -> str:
    """Panels side by side, as a file of its own, with the key to its curves."""
    room = 24 if family.by else 0
    parts = [f'<g transform="translate({k * WIDTH} {room})">{panel(family, what, f"clip-{what}")}</g>' for k, what in enumerate(whats)]
    key = legend(family, 16) if family.by else ""
    name = family.lines[0].definition.name
    return whole(key + "".join(parts), f"{name}: {', '.join(NAMES[w] for w in whats)}", name, True, WIDTH * len(whats), HEIGHT + room)


# Errors

def height(ulps: float) -> float:
    """Where an error stands on its axis: the logarithm, between the ends."""
    return math.log10(min(max(ulps, LEAST_ULP), TOP_ULP))


def errors(found: Errors, what: str, order: Sequence[str], name: str) -> str:
    """The errors of value or gradient over the magnitudes of an input; `order` has the class of each implementation from back to front."""
    frame = Frame(0.0, 1.0, math.log10(LEAST_ULP) - 0.35, math.log10(TOP_ULP) + 0.45)
    up = [(math.log10(v), t) for v, t in ULPS] + [(math.log10(TOP_ULP), "all")]
    parts = list(axes(frame, f"error of the {NAMES[what]} in ULP, float32", found.line.name, [t for t in found.ticks if t[1]], up))
    moved = found.moved.get(what)
    if moved is not None and np.isfinite(moved).any():
        tops = [(frame.x(x), frame.y(height(m if math.isfinite(m) else LEAST_ULP))) for x, m in zip(found.along, moved, strict=True)]
        floor = places(frame.y(frame.bottom))
        parts.append(f'<path class="band" d="M{places(tops[0][0])} {floor}L{path(tops)[1:]}L{places(tops[-1][0])} {floor}Z">'
                     "<title>how far the exact answer moves when each input moves to a next number</title></path>")
    for who in order:
        if who not in found.found:
            continue
        kind = {PEER: "peer", order[-1]: "ours"}.get(who, "plain")
        radius = 2.1 if kind == "ours" else 2.4
        marks = "".join(f'<circle cx="{places(frame.x(x))}" cy="{places(frame.y(height(e)))}" r="{radius}"/>'
                        for x, e in zip(found.along, found.found[who][what], strict=True) if not math.isnan(e))
        parts.append(f'<g class="{kind}">{marks}</g>')
    return whole("".join(parts), f"error of the {NAMES[what]} in ULP over the range of {found.line.name}", name, False)


def sketch(values: np.ndarray) -> str:
    """A curve alone, small."""
    low, high = limits([values])
    frame = Frame(0, len(values) - 1, low, high)
    lines = "".join(map(path, runs(np.arange(len(values)), values, frame)))
    return (f'<svg class="sketch" viewBox="{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM}" preserveAspectRatio="none" '
            f'aria-hidden="true"><path d="{lines}" vector-effect="non-scaling-stroke"/></svg>')

"""Plots as text: dots of Unicode's braille characters, 2 by 4 in a character, with a letter on each of several curves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .curves import Family
from .svg import limits as vertical
from .svg import number, title_of

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))      # by column and row in a character
EMPTY = 0x2800
COLUMNS, ROWS = 72, 16
LETTERS = "abcdefgh"


def plot(family: Family, what: str, columns: int = COLUMNS, rows: int = ROWS) -> Iterator[str]:
    """The lines of one result of a family of curves."""
    curves = [c[what] for c in family.curves]
    low, high = vertical(curves)
    labels = {0: number(float(f"{high:.3g}")), rows - 1: number(float(f"{low:.3g}"))}
    if low < 0 < high:
        labels.setdefault(place(0.0, low, high, 4 * rows) // 4, "0")
    room = max(map(len, labels.values()))
    cells = drawn(family.positions, curves, low, high, columns - room - 1, rows)
    yield f"{'':{room}} {title_of(what, family.lines[0].name)}"
    for k, line in enumerate(cells):
        yield f"{labels.get(k, ''):>{room}}{'┤' if k in labels else '│'}{line}".rstrip()
    first, last = (number(float(f"{x:.4g}")) for x in (family.positions[0], family.positions[-1]))
    yield f"{'':{room}}└{'─' * (columns - room - 1)}"
    middle = family.lines[0].name.center(columns - room - len(first) - len(last))
    yield f"{'':{room}} {first}{middle}{last}".rstrip()


def place(value: float, low: float, high: float, dots: int) -> int:
    """The row of dots of a value, from the top."""
    return round((high - value) / (high - low) * (dots - 1))


def drawn(positions: np.ndarray, curves: list[np.ndarray], low: float, high: float, columns: int, rows: int) -> list[str]:
    """The characters of the area, a text for each row."""
    dots = np.full((rows, columns), EMPTY)
    letters: dict[tuple[int, int], str] = {}
    across = np.linspace(positions[0], positions[-1], 2 * columns)
    for k, curve in enumerate(curves):
        heights = np.interp(across, positions, curve)                    # NaN stays NaN
        for x, value in enumerate(heights):
            if not (np.isfinite(value) and low <= value <= high):
                continue
            y = place(float(value), low, high, 4 * rows)
            dots[y // 4, x // 2] |= DOTS[x % 2][y % 4]
            wanted = columns * (2 * k + 1) // (2 * len(curves))
            if len(curves) > 1 and x // 2 == wanted:
                letters[y // 4, x // 2] = LETTERS[k % len(LETTERS)]
    return ["".join(letters.get((r, c), " " if dots[r, c] == EMPTY else chr(dots[r, c])) for c in range(columns)) for r in range(rows)]


def key(family: Family) -> str:
    """What the letters stand for."""
    return "   ".join(f"{LETTERS[k % len(LETTERS)]}: {family.by} = {text}" for k, text in enumerate(family.labels)) if family.by else ""

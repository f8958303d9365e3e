"""Derives the polynomials of the vector mathematics of the C target: `python tools/polynomials.py` writes their header.

Each is the best of its degree (Remez exchange in 50 digits, weighted by what its error does to the function), with its coefficients
rounded to the type; the error that the header states is that of the rounded coefficients. `--check` changes nothing and fails
where the header is another. Functions, ranges and degrees are the table POLYNOMIALS.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath as mp

HEADER = Path(__file__).resolve().parent.parent / "templates" / "c" / "polynomials.h.jinja"
Function = Callable[[Any], Any]
HALF_LOG2 = mp.mpf("0.3466")                     # a little more than log(2)/2: the reduction of an argument rounds
TERMS = 40


@dataclass(frozen=True)
class Polynomial:
    """A polynomial to derive.

    Attributes:
        name: of the C function, before its type.
        says: what it is for, as the header says it.
        series: the coefficient of x**k in the power series of what it approximates, which converges well inside the interval.
        exact: what it approximates, away from 0.
        weight: what its error is multiplied with, relative to the function that it serves.
        low, high: the interval.
        degrees: for float and for double.
    """

    name: str
    says: str
    series: Callable[[int], Any]
    exact: Function
    weight: Function
    low: Any
    high: Any
    degrees: tuple[int, int]

    def __call__(self, x: Any) -> Any:
        """What is approximated; by its series where the exact form cancels."""
        if abs(x) > mp.mpf("1e-3"):
            return self.exact(x)
        return mp.fsum(self.series(k) * x**k for k in range(TERMS))


def atanh_tail(x: Any) -> Any:
    """(2 atanh(s) - 2 s) / s**3 as a function of s**2."""
    s = mp.sqrt(x)
    return (2 * mp.atanh(s) - 2 * s) / s**3


LOW_LOG, HIGH_LOG = mp.mpf("-0.29297"), mp.mpf("0.41429")
POLYNOMIALS = (
    Polynomial("exp_tail", "(exp(x) - 1 - x) / x^2 for the exponential, abs(x) <= log(2)/2",
               lambda k: 1 / mp.factorial(k + 2), lambda x: (mp.expm1(x) - x) / x**2, lambda x: x**2 / mp.exp(x),
               -HALF_LOG2, HALF_LOG2, (4, 9)),
    Polynomial("expm1_tail", "(exp(x) - 1 - x) / x^2 for exp(x) - 1, abs(x) <= log(2)/2",
               lambda k: 1 / mp.factorial(k + 2), lambda x: (mp.expm1(x) - x) / x**2,
               lambda x: x**2 / abs(mp.expm1(x)) if x else mp.mpf(0), -HALF_LOG2, HALF_LOG2, (5, 10)),
    Polynomial("expm1mx_tail", "(exp(x) - 1 - x) / x^2 for itself, abs(x) <= 1",
               lambda k: 1 / mp.factorial(k + 2), lambda x: (mp.expm1(x) - x) / x**2,
               lambda x: x**2 / (mp.expm1(x) - x) if abs(x) > 1e-9 else mp.mpf(2), mp.mpf(-1), mp.mpf(1), (8, 15)),
    Polynomial("log_tail", "(log(1 + x) - x + x^2/2) / x^3, sqrt(1/2) <= 1 + x <= sqrt(2)",
               lambda k: mp.mpf((-1)**k) / (k + 3), lambda x: (mp.log1p(x) - x + x**2 / 2) / x**3,
               lambda x: abs(x**3 / mp.log1p(x)) if x else mp.mpf(0), LOW_LOG, HIGH_LOG, (8, 0)),
    Polynomial("atanh_tail", "(2 atanh(s) - 2 s) / s^3 of x = s^2, s = z / (2 + z): the logarithm of 1 + z between sqrt(1/2) and sqrt(2)",
               lambda k: mp.mpf(2) / (2 * k + 3), atanh_tail, lambda x: x / 2, mp.mpf(0), mp.mpf("0.02947"), (0, 6)),
    Polynomial("atanh_unit_tail", "the same for 0 <= z <= 1",
               lambda k: mp.mpf(2) / (2 * k + 3), atanh_tail, lambda x: x / 2, mp.mpf(0), mp.mpf("0.11112"), (4, 9)),
)


def remez(p: Polynomial, degree: int, rounds: int = 12) -> list[Any]:
    """The coefficients, lowest first, that make the largest weighted error smallest."""
    count = degree + 2
    middle, reach = (p.low + p.high) / 2, (p.high - p.low) / 2
    places = [middle - reach * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]
    grid = [middle - reach * mp.cos(mp.pi * i / (24 * count)) for i in range(24 * count + 1)]
    values, weights = [p(x) for x in grid], [p.weight(x) + mp.mpf("1e-12") for x in grid]
    found: list[Any] = []
    for _ in range(rounds):
        matrix, right = mp.matrix(count, count), mp.matrix(count, 1)
        for i, x in enumerate(places):
            for j in range(degree + 1):
                matrix[i, j] = x**j
            matrix[i, degree + 1] = (-1)**i / (p.weight(x) + mp.mpf("1e-12"))
            right[i] = p(x)
        solved = mp.lu_solve(matrix, right)
        found = [solved[j] for j in range(degree + 1)]
        errors = [(mp.polyval(found[::-1], x) - v) * w for x, v, w in zip(grid, values, weights, strict=True)]
        peaks: list[tuple[Any, Any]] = []                              # the largest error of each run of one sign
        for x, e in zip(grid, errors, strict=True):
            if peaks and peaks[-1][1] * e > 0:
                peaks[-1] = max(peaks[-1], (x, e), key=lambda peak: abs(peak[1]))
            else:
                peaks.append((x, e))
        while len(peaks) > count:
            peaks.remove(min((peaks[0], peaks[-1]), key=lambda peak: abs(peak[1])))
        if len(peaks) < count or max(abs(e) for _, e in peaks) < abs(solved[degree + 1]) * mp.mpf("1.0005"):
            break
        places = [x for x, _ in peaks]
    return found


def rounded(c: Any, wide: bool) -> float:
    """A coefficient as the type holds it."""
    return float(c) if wide else float(struct.unpack("f", struct.pack("f", float(c)))[0])


def error(p: Polynomial, coefficients: list[float]) -> Any:
    """The largest weighted error over the interval."""
    xs = [p.low + (p.high - p.low) * i / 1000 for i in range(1001)]
    return max(abs((mp.polyval([mp.mpf(c) for c in coefficients[::-1]], x) - p(x)) * p.weight(x)) for x in xs)


def horner(coefficients: list[float], wide: bool, width: int = 132) -> list[str]:
    """The polynomial as an expression over lines."""
    def spell(c: float) -> str:
        digits, _, power = c.hex().partition("p")
        whole, _, fraction = digits.partition(".")
        return f"{whole}.{fraction.rstrip('0') or '0'}p{power}" + ("" if wide else "f")

    words = ["(" * (len(coefficients) - 2) + f"{spell(coefficients[-1])} * x"]
    words += [f"{'-' if c < 0 else '+'} {spell(abs(c))}{') * x' if k else ''}"
              for k, c in reversed(list(enumerate(coefficients[:-1])))]
    lines = ["    return"]
    for word in words:
        if len(lines[-1]) + len(word) + 2 > width:
            lines.append("       ")
        lines[-1] += " " + word
    return [*lines[:-1], lines[-1] + ";"]


def text() -> str:
    """The header."""
    out = ['/* {{ header("").strip() }}', " *", " * Polynomials for losslib_vector.h, derived by tools/polynomials.py of losscomp.",
           " */", "#ifndef LOSSLIB_POLYNOMIALS_H", "#define LOSSLIB_POLYNOMIALS_H"]
    with mp.workdps(50):
        for p in POLYNOMIALS:
            for wide, degree in zip((False, True), p.degrees, strict=True):
                if not degree:
                    continue
                coefficients = [rounded(c, wide) for c in remez(p, degree)]
                kind = "double" if wide else "float"
                bits = mp.nstr(mp.log(error(p, coefficients), 2), 4)
                out += ["", f"/* {p.says}; error 2^{bits}. */", f"static INLINE {kind} {p.name}_{'f64' if wide else 'f32'}(const {kind} x)",
                        "{", *horner(coefficients, wide), "}"]
    return "\n".join([*out, "", "#endif", ""])


def main() -> int:
    """Write the header, or compare it with what is derived."""
    derived = text()
    if "--check" in sys.argv:
        same = HEADER.read_text() == derived
        print(f"{HEADER.name} is {'as derived' if same else 'another than what is derived'}")
        return 0 if same else 1
    HEADER.write_text(derived)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Results: what an answer holds, the precision at which it is known, and the distance of computed numbers from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, ctx

from ..errors import LosscompError
from .balls import PRECISIONS, Undecided

ENOUGH = 53 + 13                              # relative bits that leave 2**-12 of one ULP, and one bit to spare
TINY = arb(2) ** -1088                        # the same below the smallest subnormal number
HUGE = arb(2) ** 1025


class OracleError(LosscompError):
    """Arguments that do not fit the definition, or a result that the highest precision does not settle."""

    stage = "oracle"


@dataclass(frozen=True)
class Exact:
    """Exact results: the nearest float64 of each, and what is left over, so that the truth is high + low."""

    high: np.ndarray
    low: np.ndarray


@dataclass(frozen=True)
class Truth:
    """What a loss and its derivatives are.

    Attributes:
        value: of shape (N,) for reduction "none", else ().
        grad: of upstream * loss, by the name of the input and in its shape.
        hvp: the rate of `grad` along the directions; empty where none were given.
        hessian_diag: the second derivative by each single cell; empty where it was not asked for.
    """

    value: Exact
    grad: dict[str, Exact]
    hvp: dict[str, Exact]
    hessian_diag: dict[str, Exact]


def pack(results: Sequence[tuple[float, float]], shape: tuple[int, ...]) -> Exact:
    """Pairs of high and low as arrays of a shape."""
    pairs = np.array(results, dtype=np.float64).reshape(*shape, 2)
    return Exact(pairs[..., 0], pairs[..., 1])


def ulp_error(computed: Any, truth: Exact, dtype: Any) -> np.ndarray:
    """|computed - truth| in units of the spacing of a floating-point type at the truth.

    Args:
        computed: an array of the shape of the truth.
        truth: what it should be.
        dtype: the type that was computed in, or that the result is held to; subnormal spacing is the least.

    Returns an array of float64. A truth that rounds to an infinity of the type asks for that infinity, and NaN for NaN:
    the error is 0 then, and infinite for NaN or an infinity in any other place.
    """
    info = np.finfo(dtype)
    got, high, low = np.broadcast_arrays(np.asarray(computed, dtype=np.float64), truth.high, truth.low)
    with np.errstate(all="ignore"):
        exponent = np.where(np.isfinite(high) & (high != 0), np.frexp(high)[1] - 1, info.minexp)
        spacing = np.clip(exponent, info.minexp, info.maxexp - 1) - info.nmant                  # its exponent
        half = spacing // 2                                             # in two steps: 1 / spacing may be beyond float64
        error = np.abs(np.ldexp(np.ldexp(got - high, -half) - np.ldexp(low, -half), half - spacing))
        beyond = np.abs(high) >= float(info.max) + math.ldexp(0.5, info.maxexp - 1 - info.nmant)
    error = np.where(np.isinf(got) | np.isinf(high), np.inf, error)
    error = np.where(beyond & (got == np.copysign(np.inf, high)), 0.0, error)
    return np.where(np.isnan(got) | np.isnan(high), np.where(np.isnan(got) & np.isnan(high), 0.0, np.inf), error)


def settle(compute: Callable[[], Sequence[arb]]) -> list[tuple[float, float]]:
    """Results, as the nearest float64 and what is left over, at the first precision that suffices for all of them."""
    results: Sequence[arb] = ()
    for ctx.prec in PRECISIONS:
        try:
            results = compute()
        except Undecided:
            continue
        if all(map(known_well, results)):
            return [rounded(ball) for ball in results]
    raise OracleError(f"{PRECISIONS[-1]} bits do not settle a result: {', '.join(ball.str(5) for ball in results)}",
                      repair="Evaluate nearer to ordinary numbers.")


def known_well(ball: arb) -> bool:
    """Is the ball far smaller than one ULP of float64, or settled as infinite or NaN?"""
    return ball.rel_accuracy_bits() >= ENOUGH or ball.rad() < TINY or ball.is_nan() or ball > HUGE or ball < -HUGE


def rounded(ball: arb) -> tuple[float, float]:
    """The nearest float64, and what is left over."""
    high = float(ball)
    if ball > HUGE or ball < -HUGE:
        high = math.inf if ball > 0 else -math.inf
    return high, float(ball.mid() - arb(high)) if math.isfinite(high) else 0.0

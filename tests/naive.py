"""Losses as a textbook has them, without any care for floating point; several spellings of most."""

from __future__ import annotations

from sympy import cos, cosh

from losscomp.language import (
    Abs,
    Eq,
    Loss,
    Piecewise,
    Rational,
    Sum,
    axis,
    exp,
    index,
    log,
    param,
    sqrt,
    tanh,
    tensor,
)

classes = axis("classes")
c = classes.index()
rows, shares, label = tensor("rows", classes), tensor("shares", classes, between=(0, 1)), index("label", into=classes)
x, y, t = tensor("x"), tensor("y"), tensor("t", between=(0, 1), fixed=True)
p, q = tensor("p", positive=True), tensor("q", positive=True)
amount = tensor("amount", nonnegative=True)
delta, focus = param("delta", default=1.5, positive=True), param("focus", default=2.5, positive=True)

SIGMOIDS = {
    "quotient": 1 / (1 + exp(-x)),
    "exponentials": exp(x) / (1 + exp(x)),
    "tanh": (1 + tanh(x / 2)) / 2,
    "halves": exp(x / 2) / (exp(x / 2) + exp(-x / 2)),
}
FORMULAS = {
    "logistic": log(1 + exp(-x * y)),
    "softplus": log(1 + exp(x)),
    "logits": log(1 + exp(x)) - t * x,
    "logits_of_halves": -t * log(1 / (1 + exp(-x))) - (1 - t) * log(exp(-x) / (1 + exp(-x))),
    "labels": Piecewise((-log(1 / (1 + exp(-x))), Eq(y, 1)), (-log(1 - 1 / (1 + exp(-x))), True)),
    **{f"cross_entropy_of_{name}": -(t * log(s) + (1 - t) * log(1 - s)) for name, s in SIGMOIDS.items()},
    **{f"focal_of_{name}": -((1 - s)**2) * log(s) for name, s in SIGMOIDS.items()},
    "focal_of_a_parameter": -((1 - SIGMOIDS["quotient"])**focus) * log(SIGMOIDS["quotient"]),
    "brier": (1 / (1 + exp(-x)) - t)**2,
    "cross_entropy": -log(exp(rows[label]) / Sum(exp(rows[c]), c)),
    "cross_entropy_of_logarithms": log(Sum(exp(rows[c]), c)) - rows[label],
    "log_mass": log(Sum(exp(rows[c]), c)),
    "soft_labels": -Sum(shares[c] * log(exp(rows[c]) / Sum(exp(rows[c]), c)), c),
    "one_minus_share": 1 - exp(rows[label]) / Sum(exp(rows[c]), c),
    "two_exponentials": log(exp(x) + exp(y)),
    "pseudo_huber": sqrt((x - y)**2 + 1) - 1,
    "pseudo_huber_of_a_parameter": delta**2 * (sqrt(1 + ((x - y) / delta)**2) - 1),
    "charbonnier": sqrt((x - y)**2 + Rational(1, 10**6)),
    "log_cosh": log(cosh(x - y)),
    "log_cosh_of_exponentials": log((exp(x) + exp(-x)) / 2),
    "log_cosh_of_softplus": x - y + log(1 + exp(-2 * (x - y))) - log(2),
    "entropy": amount * log(amount),
    "binary_entropy": -(t * log(t) + (1 - t) * log(1 - t)) + x * t,
    "divergence": p * (log(p) - log(q)),
    "divergence_of_a_ratio": p * log(p / q),
    "growth": exp(x) - 1,
    "decay": 1 - exp(-x),
    "occupancy": -log(1 - exp(-p)),
    "linex": exp(x) - x - 1,
    "linex_of_error": exp(x - y) - (x - y) - 1,
    "welsch": 1 - exp(-(x**2) / 2),
    "cauchy": log(1 + (x - y)**2 / 2),
    "geman_mcclure": x**2 / (1 + x**2),
    "itakura_saito": p / q - log(p / q) - 1,
    "poisson": exp(x) - amount * x,
    "saturation": 1 - tanh(x),
    "bump": 1 - tanh(x)**2,
    "turn": 1 - cos(x),
    "exponential": exp(-x * y),
    "relative": Abs(x - y) / p,
    "log_error": (log(1 + p) - log(1 + q))**2,
}
NAIVE = {name: Loss(formula).called(f"naive_{name}", doc=f"{name}, as a textbook has it.") for name, formula in FORMULAS.items()}

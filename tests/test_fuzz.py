"""Random definitions through the whole compiler, and the definitions that once broke it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
from fuzzing import Grown
from support import library

from losscomp.language import (
    Abs,
    Eq,
    Hinge,
    Loss,
    Max,
    Piecewise,
    Rational,
    Sum,
    Where,
    axis,
    erf,
    exp,
    index,
    log,
    named,
    param,
    stop_gradient,
    straight_through,
    table,
    tanh,
    tensor,
)

serial = itertools.count()


def agrees(loss: Loss, tensors: dict[str, Any], folder: Path, **params: float) -> None:
    """Compile, and compare with the oracle: value, gradients, second order, every reduction, every target."""
    name = f"regress_{next(serial)}"
    loss = loss.called("probe", doc="A probe.")
    found = fuzzing.disagreements(Grown(loss, tensors, params), library([loss], folder, name, "-O0"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("first", range(0, 120, 20))       # small batches, so that two processes share them evenly
def test_random_definitions(first: int, tmp_path: Path) -> None:
    problems = fuzzing.check_seeds(list(range(first, first + 20)), tmp_path, depth=3, optimise="-O0")
    assert not problems, "\n".join(f"seed {seed}: {complaints[:3]}" for seed, complaints in problems.items())


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(1000, 11_000, 1000))
def test_many_random_definitions(first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10 000 seeds, 50 a library; says how far it is."""
    problems: dict[int, list[str]] = {}
    for start in range(first, first + 1000, 50):
        problems |= fuzzing.check_seeds(list(range(start, start + 50)), tmp_path / str(start), optimise="-O0")
        with capsys.disabled():
            print(f"\nfuzz: seeds {first} to {start + 49} checked, {len(problems)} disagree", flush=True)
    assert not problems, "\n".join(f"seed {seed}: {complaints[:3]}" for seed, complaints in problems.items())


# What the fuzzer found, once; one small definition each. Arrays have 3 samples, 4 classes, 2 features.

RNG = np.random.default_rng(7)
X, U, S = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 2)), RNG.normal(size=3)
Y, K, W = np.array([1, 0, 3]), np.array([[0, 1], [2, 3], [1, 1]]), RNG.normal(size=4)
classes, features = axis("classes"), axis("features")
c, f = classes.index(), features.index()
x, u, s, w = tensor("x", classes), tensor("u", features), tensor("s"), tensor("w", classes, per_sample=False, optional=True)
v, fixed = tensor("v", optional=True, default=0.5), tensor("fixed", fixed=True)
y, skipped = index("y", into=classes), index("y", into=classes, ignore="skip")
k = index("k", features, into=classes)
d = classes.index()


def chosen(i: Any) -> Any:
    return Where(Eq(i, y), 1, 0)

a = param("a", default=0.75, positive=True)

FOUND: dict[str, tuple[Loss, dict[str, Any], dict[str, float]]] = {
    "a parameter called a": (Loss(a * s**2 + Abs(s)**a), {"s": S}, {"a": 0.75}),
    "an optional tensor is all that moves": (Loss(v**2 * fixed), {"v": S, "fixed": S}, {}),
    "optional and absent": (Loss(v**2 * s + w[y] * x[y]), {"s": S, "x": X, "y": Y}, {}),
    "an axis of which only the size is used": (Loss(s**2 / classes.size + x[0]), {"s": S, "x": X}, {}),
    "the size of an axis, by a gather": (Loss(classes.size * x[y]**2), {"x": X, "y": Y}, {}),
    "a loss that reads a gather only": (Loss(x[y]), {"x": X, "y": Y}, {}),
    "an axis without its tensor": (Loss(Sum(s * w[c], c) + x[y]), {"s": S, "x": X, "y": Y}, {}),
    "one cell by its position": (Loss(u[0] * u[1] + exp(u[0])), {"u": U}, {}),
    "a mask on the index": (Loss(s * Where(Eq(y, 2), 1, 0) + x[y]), {"s": S, "y": Y, "x": X}, {}),
    "the index as a number": (Loss(s * y + x[y]), {"s": S, "y": Y, "x": X}, {}),
    "mean weighted by an input that moves": (Loss(s**3, mean_over=1 + s**2), {"s": S}, {}),
    "mean weighted by a shared table": (Loss(w[y] * x[y]**2, mean_over=w[y]**2 + 1), {"x": X, "y": Y, "w": W}, {}),
    "a kink of numbers inside another": (Loss(s * Max(Hinge(1, tie=1), Max(1, 1, tie=Rational(1, 2)), tie=Rational(1, 2))), {"s": S}, {}),
    "a number that stands still": (Loss(s * tanh(tanh(stop_gradient(1) + 1))), {"s": S}, {}),
    "straight through, under a sum": (Loss(Sum(straight_through(tanh(x[c]), x[c]**2), c)), {"x": X}, {}),
    "straight through, twice": (Loss(Sum(straight_through(x[c] * straight_through(s, s**2), x[c] * s), c)),
                               {"x": X, "s": S}, {}),
    "a sum within a sum over one axis": (Loss(Sum(exp(x[c]) / Sum(1 + exp(x[c]), c), c)), {"x": X}, {}),
    "a gather of a gather's row": (Loss(Sum(u[f] * x[k[f]], f)), {"u": U, "x": X, "k": K}, {}),
    "a table read at the label": (Loss(table("cell", c, x[c] * s)(y)**2), {"x": X, "s": S, "y": Y}, {}),
    "a named part used in two ways": (Loss(named("part", s**2) * exp(-named("part", s**2))), {"s": S}, {}),
    "a special value of a parameter": (Loss(Piecewise((s**2, Eq(param("b", default=1, special=(1,)), 1)), (s**4, True))),
                                       {"s": S}, {}),
    "half of a square": (Loss(Rational(1, 2) * s**2), {"s": S}, {}),
    "a product of numbers and an exponential of one": (
        Loss(s / (Rational(1, 4) + 1 / (1 + exp(-Rational(1, 2)) / (exp(v) + 1)))), {"s": S, "v": S}, {}),
    "a function of a number that is whole": (Loss(s**2 * erf(Rational(1)) + Where(s > 0, exp(-Rational(1)) * 2, 0)), {"s": S}, {}),
    "constants that add up to less than 0": (Loss(s**2 + log(log(exp(-Rational(3)) + 1) + Rational(1, 2)) - Rational(1, 2)), {"s": S}, {}),
    "a product of constants that is less than 0": (Loss(1 / Sum(exp((Rational(1, 4) + 1 / (1 + exp(Rational(1, 2)))) * (s - u[f])), f)),
                                                   {"s": S, "u": U}, {}),
    "a constant with a kink beside an exponential": (Loss(s**2 * (exp(s) - Hinge(Rational(3, 2), tie=1))), {"s": S}, {}),
    "a quotient of constants that are parts of each other": (
        Loss(v**2 / (straight_through(tanh(Rational(2)), s)**2 + 1)), {"s": S, "v": S + 0.5}, {}),
    "the larger of whole numbers": (
        Loss(x[y] * Sum(exp(Max(1, chosen(c), tie=Rational(1, 2))) / Sum(exp(Max(chosen(c), chosen(d), tie=Rational(1, 2))), d), c)),
        {"x": X, "y": Y}, {}),
    "every label but one ignored": (Loss(skipped * x[skipped]), {"x": X, "y": np.array([-100, 2, -100])}, {}),
}


@pytest.mark.parametrize("what", FOUND)
def test_once_broken(what: str, tmp_path: Path) -> None:
    loss, tensors, params = FOUND[what]
    agrees(loss, tensors, tmp_path, **params)


def test_more_arguments_than_twenty(tmp_path: Path) -> None:
    many = {f"input_{n}": tensor(f"input_{n}") for n in range(12)}
    arrays = {name: RNG.normal(size=3) for name in many}
    squares = sum(t**2 * (n + 1) for n, t in enumerate(many.values()))
    agrees(Loss(squares + many["input_0"] * many["input_11"]), arrays, tmp_path)


def test_all_samples_ignored(tmp_path: Path) -> None:
    loss = Loss(x[skipped]**2, name="skips", doc="Skips.")
    for module in library([loss], tmp_path, "all_ignored", "-O0").values():
        everything = {"x": X, "y": np.full(3, -100)}
        for reduction in ("sum", "none"):
            value, grads = module.skips.value_and_grad(**everything, reduction=reduction)
            assert np.all(np.asarray(value) == 0) and np.all(grads[0] == 0)
        value, grads = module.skips.value_and_grad(**everything)
        assert np.isnan(value) and np.all(grads[0] == 0)               # 0 / 0, and nothing moves it

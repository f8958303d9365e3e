"""Random definitions through the whole compiler, every target against the oracle.

A definition is grown from a seed: pointwise, rows, gathers, masks, optional inputs, named parts, kinks with ties, quotients of
reductions. `python tests/fuzzing.py FIRST COUNT` checks that many seeds and prints what disagrees.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sympy as sp
from support import load_library, write_emitted

from losscomp import nodes
from losscomp.check import check
from losscomp.emit import Emitted, emit_loss
from losscomp.errors import CheckError, LosscompError
from losscomp.language import (
    Abs,
    Eq,
    Hinge,
    LogSumExp,
    Loss,
    Max,
    MaxOver,
    Min,
    Norm,
    Piecewise,
    Rational,
    Sqrt,
    Sum,
    Where,
    axis,
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
from losscomp.oracle import exact, select

SAMPLES, CLASSES, FEATURES = 3, 4, 2


@dataclass
class Grown:
    """A random definition and arrays to evaluate it at, in the layout of kernels."""

    loss: Loss
    tensors: dict[str, np.ndarray]
    params: dict[str, float]


class Grower:
    """Grows expressions whose values stay of ordinary size, so that a disagreement is a bug and no rounding."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        r = self.r
        self.classes, self.features = axis("classes", position=r.choice([-1, 1])), axis("features")
        self.x, self.z = tensor("x", self.classes), tensor("z", self.classes, fixed=True)
        self.u = tensor("u", self.features)
        self.s, self.t = tensor("s"), tensor("t", fixed=r.random() < 0.5)
        self.w = tensor("w", self.classes, per_sample=False, optional=True)
        self.v = tensor("v", optional=True, default=r.choice([1.0, 0.5]))
        self.y = index("y", into=self.classes, ignore="skip" if r.random() < 0.4 else None)
        self.k = index("k", self.features, into=self.classes)
        self.a = param("a", default=0.75, positive=True, special=r.choice([(), (), (1,), (2, Rational(1, 2))]))
        self.count = 0

    def pick(self, *options: Any) -> Any:
        return self.r.choice(options)()

    def leaf(self, bound: list[nodes.Index]) -> sp.Expr:
        at = [lambda i=i: self.x[i] for i in bound if i.axis == self.classes]
        at += [lambda i=i: self.z[i] for i in bound if i.axis == self.classes]
        at += [lambda i=i: self.w[i] for i in bound if i.axis == self.classes]
        at += [lambda i=i: self.u[i] for i in bound if i.axis == self.features] * 2
        at += [lambda i=i: self.x[self.k[i]] for i in bound if i.axis == self.features]
        at += [lambda i=i: Where(Eq(i, self.y), 1, 0) for i in bound if i.axis == self.classes]
        return self.pick(lambda: self.s, lambda: self.t, lambda: self.x[self.y], lambda: self.w[self.y], lambda: self.v,
                         lambda: self.a, lambda: Rational(self.r.randint(-3, 3), 2), *at, *at)

    def positive(self, depth: int, bound: list[nodes.Index]) -> sp.Expr:
        e = self.grow(depth - 1, bound)
        return self.pick(lambda: 1 + e**2, lambda: log(1 + exp(e)) + Rational(1, 2), lambda: exp(tanh(e)), lambda: Sqrt(1 + e**2),
                         lambda: 1 / (1 + exp(-e)) + Rational(1, 4))

    def reduction(self, depth: int, bound: list[nodes.Index]) -> sp.Expr:
        ax = self.r.choice([self.classes, self.classes, self.features])
        i = ax.index()
        body = self.grow(depth - 1, [*bound, i])
        return self.pick(
            lambda: Sum(body, i) / ax.size, lambda: Sum(body, i) / ax.size, lambda: LogSumExp(body, i), lambda: MaxOver(body, i),
            lambda: Norm(body, i, self.r.choice([1, 2, sp.oo, 3])), lambda: log(Sum(exp(body), i)),
            lambda: Sum(exp(body), i) ** -1, lambda: exp(body.xreplace({i: self.y}) if ax == self.classes else self.u[0]) / Sum(
                exp(body), i))

    def grow(self, depth: int, bound: list[nodes.Index]) -> sp.Expr:
        r = self.r.random()
        if depth <= 0 or r < 0.12:
            return self.leaf(bound)

        def sub() -> sp.Expr:
            return self.grow(depth - 1, bound)

        if r < 0.30:
            return sub() + sub()
        if r < 0.36:
            return sub() - sub()
        if r < 0.50:
            return sub() * sub()
        if r < 0.56:
            return sub() / self.positive(depth, bound)
        if r < 0.60:
            return log(self.positive(depth, bound))
        if r < 0.64:
            return tanh(sub())
        if r < 0.68:
            return self.pick(lambda: Hinge(sub(), tie=1), lambda: Abs(sub()), lambda: Max(sub(), sub(), tie=Rational(1, 2)),
                             lambda: Min(sub(), sub(), tie=0))
        if r < 0.73:
            return Piecewise((sub(), sub() < sub()), (sub(), True))
        if r < 0.75:
            return Where(Eq(self.y, self.r.randint(0, CLASSES - 1)), sub(), sub())
        if r < 0.77:
            return Where(Eq(self.a, 1), sub(), sub()) if self.a.record.special == (1,) else sub()
        if r < 0.80:
            self.count += 1
            return named(f"part{self.count}", sub())
        if r < 0.82:
            return self.pick(lambda: stop_gradient(sub()), lambda: straight_through(tanh(sub()), sub()))
        if r < 0.84:
            i = self.classes.index()
            self.count += 1
            return table(f"cell{self.count}", i, self.grow(depth - 1, [*bound, i]))(self.y)
        if r < 0.86:
            return self.positive(depth, bound)
        return self.reduction(depth, bound) if len(bound) < 2 else sub()


def grow(seed: int, depth: int = 4) -> Grown:
    """A random definition that passes the check stage, and arrays for it."""
    for attempt in itertools.count():
        grown = grow_once(seed, Grower(1_000_000 * attempt + seed), depth)
        if grown is not None:
            return grown
    raise AssertionError


def grow_once(seed: int, grower: Grower, depth: int) -> Grown | None:
    """One try; None where the definition has an axis of no known length."""
    value = sp.S.Zero
    while not any(t.record.per_sample and not t.record.integer for t in nodes.tensors(sp.sympify(value))):
        value = sp.sympify(grower.grow(depth, []))
    mean_over: Any = 1
    if grower.r.random() < 0.5:
        mean_over = grower.r.choice([grower.w[grower.y] ** 2 + 1, grower.v**2 + 1, 1 + grower.s**2])
    name = f"fuzz_{seed}"
    loss = Loss(value, mean_over=mean_over, name=name, doc=f"Random definition {seed}.")
    rng = np.random.default_rng(seed)
    full = {
        "x": rng.normal(size=(SAMPLES, CLASSES)), "z": rng.normal(size=(SAMPLES, CLASSES)), "u": rng.normal(size=(SAMPLES, FEATURES)),
        "s": rng.normal(size=SAMPLES), "t": rng.normal(size=SAMPLES), "w": rng.normal(size=CLASSES), "v": rng.normal(size=SAMPLES),
        "y": rng.integers(0, CLASSES, SAMPLES), "k": rng.integers(0, CLASSES, (SAMPLES, FEATURES)),
    }
    if grower.y.tensor.record.ignore and rng.random() < 0.7:
        full["y"][rng.integers(SAMPLES)] = -100
    try:
        form = check(loss)[0]
    except CheckError:
        return None
    measured = {a for t in form.inputs if t.record.default is None for a in t.record.axes}
    tensors = {t.name: full[t.name] for t in form.inputs
               if t.record.default is None or not set(t.record.axes) <= measured or rng.random() < 0.6}
    params = {"a": float(rng.choice([0.75, 1.0, 2.0, 0.5]))} if any(p.name == "a" for p in form.params) else {}
    return Grown(loss, tensors, params)


def to_user(grown: Grown, name: str, array: np.ndarray) -> np.ndarray:
    """An array in the layout of users: the class axis where the definition puts it."""
    form = check(grown.loss)[0]
    record = next(t.record for t in form.inputs if t.name == name)
    if record.per_sample and len(record.axes) == 1 and record.axes[0].record.position == 1 and array.ndim == 2:
        return array                                                     # one batch dimension: dimension 1 is the last
    return array


def disagreements(grown: Grown, targets: dict[str, Any], tolerance: float = 1e-9) -> list[str]:
    """What each target gets wrong: value, gradients and Hessian-vector products of every reduction."""
    form = select(check(grown.loss), grown.params)
    rng = np.random.default_rng(len(str(grown.loss.value)))
    given = [t.name for t in form.differentiable if t.name in grown.tensors]
    directions = {n: rng.normal(size=grown.tensors[n].shape) for n in given}
    bad = []
    for reduction in ("none", "sum", "mean"):
        upstream = rng.normal(size=SAMPLES) if reduction == "none" else 1.5
        truth = exact(form, grown.tensors, grown.params, reduction=reduction, upstream=upstream, wrt=given, directions=directions)
        for target, module in targets.items():
            f = getattr(module, grown.loss.name)
            arguments = {**grown.tensors, **grown.params}
            value, grads = f.value_and_grad(**arguments, reduction=reduction, wrt=given, upstream=upstream)
            products = f.hvp(direction=directions, **arguments, reduction=reduction, wrt=given, upstream=upstream)
            rate = f.jvp(direction=directions, **arguments, reduction=reduction, wrt=given)
            along = sum(np.sum(truth.grad[n].high * directions[n]) for n in given)
            results = [("value", value, truth.value.high), ("value alone", f(**arguments, reduction=reduction), truth.value.high)]
            results += [(f"grad {n}", g, truth.grad[n].high) for n, g in zip(given, grads, strict=True)]
            results += [(f"hvp {n}", h, truth.hvp[n].high) for n, h in zip(given, products, strict=True)]
            results += [("jvp", np.sum(np.asarray(rate) * upstream), along)]
            for what, got, want in results:
                got = np.asarray(got)
                wrong = got.shape != np.shape(want)
                if not wrong:
                    with np.errstate(all="ignore"):
                        error = np.abs(got - want) / np.maximum(1, np.abs(want))
                    error = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0, error)
                    wrong = not np.all(error <= tolerance)
                if wrong:
                    bad.append(f"{target} {reduction} {what}: {got} and not {want}")
    return bad


def check_seeds(seeds: list[int], folder: Path, depth: int = 4, optimise: str = "-O1") -> dict[int, list[str]]:
    """Grow, compile and compare; the complaints by seed."""
    grown: dict[int, Grown] = {}
    problems: dict[int, list[str]] = {}
    for seed in seeds:
        try:
            grown[seed] = grow(seed, depth)
        except LosscompError as error:
            problems[seed] = [f"grow: {error}"]
    emitted: list[Emitted] = []
    name = f"fuzzlib_{seeds[0]}_{len(seeds)}"
    for seed, g in grown.items():
        try:
            emitted.append(emit_loss(g.loss, name, "fuzz", ("numpy", "c")))
        except Exception as error:
            problems[seed] = [f"compile: {type(error).__name__}: {error}"]
    if not emitted:
        return problems
    targets = load_library(write_emitted(emitted, folder, name), name, optimise)
    for seed, g in grown.items():
        if seed in problems:
            continue
        try:
            found = disagreements(g, targets)
        except Exception as error:
            found = [f"run: {type(error).__name__}: {error}"]
        if found:
            problems[seed] = found
    return problems


def main(first: int, count: int, batch: int = 50) -> int:
    """Check `count` seeds from `first`; the number of seeds that disagree."""
    failures = 0
    for start in range(first, first + count, batch):
        seeds = list(range(start, min(start + batch, first + count)))
        with tempfile.TemporaryDirectory() as folder:
            for seed, complaints in check_seeds(seeds, Path(folder)).items():
                failures += 1
                print(f"seed {seed}: {grow(seed).loss.value}\n  " + "\n  ".join(complaints[:4]), flush=True)
        print(f"{start + len(seeds) - first} checked, {failures} disagree", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]), int(sys.argv[2])) else 0)

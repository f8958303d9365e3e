"""Seeded faults: each must be seen by the comparison with the oracle, and nothing may be seen without one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import sympy as sp
from fuzzing import Grown
from support import COMPILER, library

from losscomp import atoms, differentiate, emit, ir, lower, nodes, pipeline, rules
from losscomp.language import Abs, Hinge, Loss, MaxOver, Norm, Sum, axis, exp, log, param, tensor
from losscomp.lower import Lowering
from losscomp.rewrite import Rule
from losscomp.targets.c import CPrinter
from losscomp.targets.numpy import NumPyPrinter

serial = itertools.count()
RNG = np.random.default_rng(11)
ARRAYS = {"x": RNG.normal(size=(3, 4)), "s": RNG.normal(size=3), "t": RNG.normal(size=3) + 0.25}
Mutation = Callable[[pytest.MonkeyPatch], None]


def losses() -> dict[str, Loss]:
    """Made anew for each fault, small, one for each part of the compiler."""
    classes, features = axis("classes"), axis("features")
    c, f = classes.index(), features.index()
    x, w, s, t = tensor("x", classes), tensor("w", features), tensor("s"), tensor("t")
    a = param("a", default=1.5, positive=True)
    return {name: loss.called(name, doc=name) for name, loss in {
        "row": Loss(log(Sum(exp(x[c]), c)) + Sum(x[c]**2, c)),
        "top": Loss(MaxOver(x[c], c)**2 + Norm(x[c], c)),
        "kinks": Loss(Hinge(s - t, tie=1) + Abs(t)),
        "smooth": Loss(log(1 + exp(s)) * t + a * s**2 * t + exp(t) - 1 + log(1 + t**2)),
        "minus": Loss(-s * t**3),
        "grid": Loss(Sum(Sum(x[c] * w[f], c)**2, f)),
    }.items()}


def complaints(names: tuple[str, ...], folder: Path) -> list[str]:
    """What the project's own comparison says of freshly compiled losses; a refusal to compile is a complaint too."""
    ties = {**ARRAYS, "s": ARRAYS["s"].copy(), "w": RNG.normal(size=(3, 2))}
    ties["s"][0] = ties["t"][0]
    chosen = [losses()[name] for name in names]
    targets = library(chosen, folder, f"mutant_{next(serial)}", "-O0")
    found = []
    for loss in chosen:
        reads = {tensor_.name for tensor_ in nodes.tensors(loss.value)}
        params = {"a": 1.5} if loss.name == "smooth" else {}
        found += fuzzing.disagreements(Grown(loss, {k: v for k, v in ties.items() if k in reads}, params), targets)
    return found


def test_without_a_fault_nothing_is_seen(tmp_path: Path) -> None:
    assert not complaints(tuple(losses()), tmp_path)


def flipped_rate(patch: pytest.MonkeyPatch) -> None:
    right = differentiate.reduction_rate
    patch.setattr(differentiate, "reduction_rate", lambda part, seed: -right(part, seed))


def uneven_ties(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(differentiate, "same", lambda a, b: sp.S.One)


def hinge_at_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(atoms.hinge, "fdiff", lambda self, k=1: atoms.step(self.args[0], 1 - self.args[1]) if k == 1 else sp.S.Zero)


def slope_of_abs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(atoms.Abs, "fdiff", lambda self, k=1: atoms.Sign(-self.args[0]))


def dropped_parameter(patch: pytest.MonkeyPatch) -> None:
    right = Lowering.lower
    patch.setattr(Lowering, "lower",
                  lambda self, expr, env: lower.ONE if isinstance(expr, nodes.Param) else right(self, expr, env))


def dropped_factor(patch: pytest.MonkeyPatch) -> None:
    right = lower.product

    def product(above: Any, below: Any = (), sign: bool = False) -> ir.Node:
        above = list(above)
        return right(above[:-1] if len(above) > 2 else above, below, sign)

    patch.setattr(lower, "product", product)


def lost_sign(patch: pytest.MonkeyPatch) -> None:
    right = lower.product
    patch.setattr(lower, "product", lambda above, below=(), sign=False: right(above, below))


def lost_division(patch: pytest.MonkeyPatch) -> None:
    right = lower.product
    patch.setattr(lower, "product", lambda above, below=(), sign=False: right([*above, *below], (), sign))


def wrong_extent(patch: pytest.MonkeyPatch) -> None:
    """Every term of a sum is one too large, as if another row were added."""
    right = Lowering.reduction

    def reduction(self: Lowering, expr: nodes.Reduce, env: Any) -> ir.Node:
        node = right(self, expr, env)
        return ir.Reduce("sum", node.var, ir.Op("add", (node.body, ir.Const(1)))) if isinstance(
            node, ir.Reduce) and node.op == "sum" else node

    patch.setattr(Lowering, "reduction", reduction)


def size_of_another_axis(patch: pytest.MonkeyPatch) -> None:
    right = differentiate.total
    patch.setattr(differentiate, "total", lambda body, index: right(body, index) if index.axis.name == "classes" else (
        right(body, index) / index.axis))


def wrong_rule(name: str, change: Callable[[Any], Any]) -> Mutation:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        def spoil(rule: Any) -> Any:
            if not isinstance(rule, Rule) or rule.name != name:
                return rule
            right = rule.replacement
            return replace(rule, replacement=(lambda found: change(right(found))) if callable(right) else change(right))

        patch.setattr(pipeline, "SMOOTHING", tuple(map(spoil, rules.SMOOTHING)))
        patch.setattr(pipeline, "STABILISING", tuple(map(spoil, rules.STABILISING)))
    return mutate


def spelled(printer: type, operation: str, wrong: str) -> Mutation:
    return lambda patch: patch.setitem(printer.calls, operation, wrong)


FAULTS: dict[str, tuple[Mutation, tuple[str, ...]]] = {
    "the rate of a reduction has the wrong sign": (flipped_rate, ("row",)),
    "a maximum is not shared among its ties": (uneven_ties, ("top",)),
    "the slope of a hinge at 0": (hinge_at_zero, ("kinks",)),
    "the slope of an absolute value": (slope_of_abs, ("kinks",)),
    "a parameter is dropped": (dropped_parameter, ("smooth",)),
    "a factor of a product is dropped": (dropped_factor, ("smooth",)),
    "a sign of a product is lost": (lost_sign, ("minus",)),
    "a division is a product": (lost_division, ("row", "top", "smooth")),
    "a sum has an extra term": (wrong_extent, ("row",)),
    "a sum is divided by the size of its axis": (size_of_another_axis, ("grid",)),
    "a rule for the softplus": (wrong_rule("softplus", lambda e: -e), ("smooth",)),
    "a rule for log sum exp": (wrong_rule("log sum exp", lambda e: -e), ("row",)),
    "a rule that is a constant off": (wrong_rule("expm1", lambda e: e + 1), ("smooth",)),
    **{f"C says {right} as {wrong}": (spelled(CPrinter, right, wrong + "({0})"), (loss,)) for right, wrong, loss in (
        ("log1p", "log", "smooth"), ("expm1", "exp", "smooth"), ("abs", "sign", "kinks"), ("sqrt", "fabs", "top"))},
    **{f"NumPy says {right} as {wrong}": (spelled(NumPyPrinter, right, f"np.{wrong}({{0}})"), (loss,))
       for right, wrong, loss in (
        ("log1p", "log", "smooth"), ("expm1", "exp", "smooth"), ("abs", "sign", "kinks"), ("sqrt", "abs", "top"))},
    "C selects the other arm": (spelled(CPrinter, "where", "{0} ? {2} : {1}"), ("kinks",)),
    "NumPy selects the other arm": (spelled(NumPyPrinter, "where", "np.where({0}, {2}, {1})"), ("kinks",)),
    "C takes the difference the wrong way round": (spelled(CPrinter, "exp_below", "exp_below({1}, {0})"), ("row",)),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_seen(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, names = FAULTS[what]
    if what.startswith("C ") and not COMPILER:
        pytest.skip("mutants of the C printer are NOT TESTED: there is no C compiler")
    sp.core.cache.clear_cache()
    try:
        mutate(monkeypatch)
        seen = complaints(names, tmp_path)
    finally:
        monkeypatch.undo()
        sp.core.cache.clear_cache()
    assert seen, f"{what}, and nothing was seen"
    if what.startswith(("C ", "NumPy ")):
        target = "c" if what.startswith("C ") else "numpy"
        assert all(line.startswith(target) for line in seen)              # and the other target is right


def test_losses_fire_the_rules_that_are_spoiled() -> None:
    """A spoiled rule that never fires would prove nothing."""
    fired = {s.rule for loss in losses().values() for c in pipeline.compile_loss(loss) for s in c.smoothing}
    assert {"softplus", "log sum exp", "expm1", "log1p"} <= fired
    assert emit.compile_definition(losses()["row"])

"""Definitions: what is refused, and how; and every feature of the language on every target against the oracle."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import sympy as sp
from fuzzing import Grown
from support import library

from losscomp import emit
from losscomp.check import check
from losscomp.errors import CheckError, DefinitionError, LosscompError
from losscomp.language import (
    Abs,
    Eq,
    Hinge,
    If,
    LogSumExp,
    Loss,
    Max,
    MaxOver,
    Min,
    Ne,
    Norm,
    Piecewise,
    Rational,
    Sign,
    Sqrt,
    Sum,
    Where,
    axis,
    erf,
    exp,
    index,
    log,
    named,
    oo,
    option,
    param,
    sqrt,
    stated,
    stop_gradient,
    straight_through,
    table,
    tanh,
    tensor,
    xlogy,
)
from losscomp.oracle import exact, select

serial = itertools.count()
RNG = np.random.default_rng(5)
X, Z, U = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4)), RNG.normal(size=(3, 2))
S, T, W = RNG.normal(size=3), RNG.normal(size=3), RNG.uniform(0.5, 2, size=4)
Y, K = np.array([1, 0, 3]), np.array([[0, 1], [2, 3], [1, 1]])
classes, features = axis("classes"), axis("features")
c, d, f = classes.index(), classes.index(), features.index()
x, z, u = tensor("x", classes), tensor("z", classes), tensor("u", features)
s, t, v = tensor("s"), tensor("t"), tensor("v", optional=True, default=0.5)
w = tensor("w", classes, per_sample=False, optional=True)
y, k = index("y", into=classes), index("k", features, into=classes)
a = param("a", default=0.75, positive=True)


# Refusals

def refuse(build: Callable[[], Any]) -> LosscompError:
    """The error of a definition, from the language or from a stage of the compiler."""
    with pytest.raises(LosscompError) as caught:
        emit.emit_loss(build().called("probe", path="probe.py:3"), "refused", "test")
    return caught.value


def named_tensor(name: str) -> Callable[[], Loss]:
    return lambda: Loss(tensor(name) ** 2)


BAD: dict[str, tuple[Callable[[], Any], type[LosscompError], str]] = {
    "unknown symbol": (lambda: Loss(s * sp.Symbol("q")), CheckError, "'q'"),
    "wrong number of indices": (lambda: Loss(x[c, d]), DefinitionError, "x.*classes.*2 indices"),
    "index of another axis": (lambda: Loss(Sum(x[f], f)), DefinitionError, "runs along classes"),
    "axis as index": (lambda: Loss(x[classes]), DefinitionError, "no position along classes"),
    "real as index": (lambda: Loss(x[s]), DefinitionError, "no position along classes"),
    "index tensor into another axis": (lambda: Loss(x[index("m", into=features)]), DefinitionError, "m points into features"),
    "index unbound": (lambda: Loss(x[c] ** 2), CheckError, "index of the axis 'classes'"),
    "index unbound in mean_over": (lambda: Loss(s**2 + x[y], mean_over=w[c]), CheckError, "mean_over.*'classes'"),
    "reduction over no index": (lambda: Loss(Sum(s, s)), DefinitionError, "binds an index"),
    "Max without tie": (lambda: Loss(Max(s, t)), DefinitionError, "Max has a kink"),
    "Min without tie": (lambda: Loss(Min(s, t)), DefinitionError, "Min has a kink"),
    "Hinge without tie": (lambda: Loss(Hinge(s)), DefinitionError, "Hinge has a kink"),
    "SymPy's Max": (lambda: Loss(sp.Max(s, t)), CheckError, "Max"),
    "SymPy's Min": (lambda: Loss(sp.Min(s, 0)), CheckError, "Min"),
    "SymPy's Heaviside": (lambda: Loss(sp.Heaviside(s)), CheckError, "Heaviside"),
    "SymPy's Piecewise": (lambda: Loss(sp.Piecewise((s, s > 0), (t, True))), CheckError, "Piecewise"),
    "SymPy's Sum": (lambda: Loss(sp.Sum(s * sp.Symbol("n"), (sp.Symbol("n"), 1, 3))), CheckError, "Sum|'n'"),
    "a function outside the language": (lambda: Loss(sp.gamma(s)), CheckError, "gamma"),
    "an unknown function": (lambda: Loss(sp.Function("mystery")(s)), CheckError, "mystery"),
    "no real tensor": (lambda: Loss(y + 1), CheckError, "no real tensor|axis 'classes'"),
    "the loss is an index": (lambda: Loss(y), CheckError, "y"),
    "a constant": (lambda: Loss(1), CheckError, "no real tensor"),
    "Piecewise without default": (lambda: Loss(Piecewise((s, s > 0), (t, s < 0))), DefinitionError, "last arm"),
    "bad shape word": (lambda: tensor("q", shape="huge"), DefinitionError, "'huge'"),
    "bad reduction": (lambda: Loss(s**2, reductions=("mean", "median")), DefinitionError, "'median'"),
    "signature misses a word": (lambda: Loss(s * t, signature="s reduction"), CheckError, r"missing \['t'\]"),
    "signature has an unknown word": (lambda: Loss(s**2, signature="s q reduction"), CheckError, r"unknown \['q'\]"),
    "signature repeats a word": (lambda: Loss(s**2, signature="s s reduction"), CheckError, "does not fit"),
    "axis of unknown length": (lambda: Loss(s * Sum(w[c], c)), CheckError, "'classes'"),
    "size of an unknown axis": (lambda: Loss(s * classes.size), CheckError, "'classes'"),
    "all optional": (lambda: Loss(v**2), CheckError, "optional or shared"),
    "all shared": (lambda: Loss(Sum(tensor("q", classes, per_sample=False)[c] ** 2, c)), CheckError, "optional or shared"),
    "tensor and parameter of one name": (lambda: Loss(tensor("q") * param("q", default=1)), CheckError, "'q' names"),
    "tensor and axis of one name": (lambda: Loss(s * Sum(tensor("classes", classes)[c], c)), CheckError, "'classes' names"),
    "two tensors of one name": (lambda: Loss(Sum(tensor("q", classes)[c] * tensor("q"), c)), CheckError, "'q' names"),
    "two parameters of one name": (lambda: Loss(s * param("q", default=1) + param("q", default=2)), CheckError, "'q' names"),
    "ignore on an index with axes": (lambda: index("q", features, into=classes, ignore="skip"), DefinitionError, "ignore"),
    "stated slope by no input": (lambda: Loss(stated(s**2, {s + t: 1})), LosscompError, "stated|input"),
    **{f"the name {name!r}": (named_tensor(name), CheckError, repr(name)) for name in (
        "double", "static", "lambda", "class", "not", "2x", "a-b", "", "with space", "_hidden", "dunder__name", "exp",
        "sigmoid", "np", "scale", "loss", "grad_x", "hvp_x", "direction_x", "total_loss", "reduction", "out", "wrt", "batch",
        "value", "upstream")},
    "a parameter called wrt": (lambda: Loss(s * param("wrt", default=1.0)), CheckError, "'wrt'"),
    "an axis called int": (lambda: Loss(Sum(tensor("q", axis("int"))[0], c)), CheckError, "'int'"),
    "a loss called double": (lambda: Renamed(), CheckError, "'double'"),
    "more arrays than a kernel takes": (lambda: Loss(sum(tensor(f"q{n}") ** 2 for n in range(24))), LosscompError,
                                        "argument|tensor|input|array"),
    "more axes than a kernel takes": (lambda: Loss(deep(5)), LosscompError, "axes"),
    "more parameters than a kernel takes": (lambda: Loss(sum(s * param(f"q{n}", default=1.0) for n in range(12))),
                                            LosscompError, "parameter|scalar"),
}


class Renamed(Loss):
    """A loss that insists on its name."""

    def __init__(self) -> None:
        super().__init__(s**2)

    def called(self, name: str, **fields: Any) -> Loss:
        return Loss(s**2, name="double", **fields)


def deep(count: int) -> sp.Expr:
    """A sum over many axes."""
    axes = [axis(f"axis_{'abcdefgh'[n]}") for n in range(count)]
    places = [ax.index() for ax in axes]
    body = tensor("q", *axes)[tuple(places)] ** 2
    for i in places:
        body = Sum(body, i)
    return body


@pytest.mark.parametrize("what", BAD)
def test_refused_with_what_where_and_repair(what: str) -> None:
    build, kind, words = BAD[what]
    error = refuse(build)
    assert isinstance(error, kind), repr(error)
    assert re.search(words, error.what), error.what
    assert error.repair and str(error).endswith(error.repair)
    if isinstance(error, CheckError):
        assert error.where == "probe.py:3" and str(error).startswith("probe.py:3: check: ")
    assert "#" not in error.what and "Dummy" not in error.what                         # no names of the compiler's own


# Features

special = param("p", default=2, special=(1, 2))
flag = option("flag", default=False)
ignored = index("y", into=classes, ignore="skip")
TIED = np.array([[1.0, 2.0, 2.0, -1.0], [3.0, 3.0, 3.0, 3.0], [0.0, -1.0, 0.0, -2.0]])
ZEROS = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, -2.0, 0.0], [1e200, -1e200, 1e190, 0.0]])
SMALL = np.array([[1e-200, 1e-200, 0.0, 1e-210], [5e-324, 0.0, 0.0, 0.0], [0.5, -1.0, 2.0, 0.0]])
KINKED = np.array([0.5, 0.0, -2.0])

FEATURES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "stop_gradient": (s * stop_gradient(s**2) + stop_gradient(exp(t)), {"s": S, "t": T}, {}),
    "straight_through": (straight_through(Sign(s), tanh(s)) * t, {"s": S, "t": T}, {}),
    "stated": (stated(s**2 * t, {s: 3 * s * t}), {"s": S, "t": T}, {}),
    "stated, at a label": (stated(xlogy(s**2, t**2), {t: s / t}), {"s": S, "t": T}, {}),
    "named": (named("part", s * t) ** 2 + named("part", s * t), {"s": S, "t": T}, {}),
    "table": (table("cell", c, x[c] * s)(y) + Sum(table("cell", c, x[c] * s)(c) ** 2, c), {"x": X, "s": S, "y": Y}, {}),
    "mask": (Sum(Where(Eq(c, y), 0, x[c] ** 2), c), {"x": X, "y": Y}, {}),
    "mask, with Ne": (Sum(Where(Ne(c, y), x[c] ** 3, -x[c]), c), {"x": X, "y": Y}, {}),
    "masked singularity": (Where(sp.Eq(s, 0), 0, s * log(Abs(s))), {"s": KINKED}, {}),
    "and, or, not": (Where(sp.And(s > 0, sp.Or(t > 0, sp.Not(s > 1))), s * t, s + t), {"s": S, "t": T}, {}),
    "option yes": (If(flag, s**2, t**3), {"s": S, "t": T}, {"flag": True}),
    "option no": (If(flag, s**2, t**3), {"s": S, "t": T}, {"flag": False}),
    **{f"special {p}": (
        Piecewise((Abs(s), Eq(special, 1)), (s**2, Eq(special, 2)), (exp(special * s), True)), {"s": S}, {"p": p})
       for p in (1.0, 2.0, 0.3)},
    **{f"Norm {p}, {what}": (Norm(x[c], c, p), {"x": data}, {}) for p in (0, Rational(1, 2), 1, 2, 3, oo)
       for what, data in (("ordinary", X), ("ties", TIED))},
    **{f"Norm {p}, zeros and huge": (Norm(x[c], c, p), {"x": ZEROS}, {}) for p in (1, 2, 3, oo)},
    "Norm 2, plus": (Norm(x[c] - z[c], c, plus=Rational(1, 100)), {"x": X, "z": Z}, {}),
    "Norm of a named power": (Norm(x[c], c, special), {"x": X}, {"p": 3.0}),
    "Norm of a special power": (Norm(x[c], c, special), {"x": X}, {"p": 2.0}),
    "optional, absent": (v * s**2 + w[y] * x[y], {"s": S, "x": X, "y": Y}, {}),
    "optional, given": (v * s**2 + w[y] * x[y], {"s": S, "x": X, "y": Y, "v": T, "w": W}, {}),
    "ignore": (ignored * x[ignored] ** 2, {"x": X, "y": np.array([1, -100, 2])}, {}),
    "ignore another": (x[ignored] ** 2, {"x": X, "y": np.array([1, 7, 2])}, {"skip": 7}),
    "fixed cell": (u[0] ** 2 * u[1], {"u": U}, {}),
    "two indices over one axis": (Sum(Sum(x[c] * x[d] * z[d], d) ** 2, c), {"x": X, "z": Z}, {}),
    "pairs": (Sum(Sum(Where(Eq(c, d), 0, Hinge(x[c] - x[d], tie=0) ** 2), d), c), {"x": X}, {}),
    "a gather within a sum": (Sum(u[f] * x[k[f]] ** 2, f), {"u": U, "x": X, "k": K}, {}),
    "LogSumExp, ties": (LogSumExp(x[c], c), {"x": TIED}, {}),
    "LogSumExp, far apart": (LogSumExp(x[c], c), {"x": X * 1000}, {}),
    "MaxOver, ties": (MaxOver(x[c], c) * s, {"x": TIED, "s": S}, {}),
    **{f"Max, tie {tie}": (Max(s, t, tie=tie) * t, {"s": np.array([1.0, 2.0, 3.0]), "t": np.array([1.0, 5.0, 2.0])}, {})
       for tie in (0, 1, Rational(1, 2))},
    "Min, tie": (Min(s, t, tie=Rational(1, 4)) ** 2, {"s": np.array([1.0, 2.0, 3.0]), "t": np.array([1.0, 5.0, 2.0])}, {}),
    **{f"Hinge, tie {tie}": (Hinge(s, tie=tie) * t, {"s": KINKED, "t": T}, {}) for tie in (0, 1, Rational(1, 3))},
    "Abs at 0": (Abs(s) ** 3 + Abs(s), {"s": KINKED}, {}),
    "SymPy's Abs and sign": (sp.Abs(s) + sp.sign(s) * t, {"s": KINKED, "t": T}, {}),
    "Sqrt at 0": (Sqrt(s**2), {"s": KINKED}, {}),
    "the functions": (erf(s) + sp.sin(s) * sp.cos(t) + sp.atan(s) + sqrt(t**2 + 1) + sp.pi * s, {"s": S, "t": T}, {}),
    "no gradient by a label": (s * y + x[y], {"s": S, "y": Y, "x": X}, {}),
    "a number over an input": (1 / (3 * s) + Rational(2, 7) / t**2, {"s": S, "t": T}, {}),
    "a number over a parameter": (s**2 / (3 * a) + 1 / (5 * a), {"s": S}, {"a": 1.3}),
    "a number over a size": (Sum(x[c], c) * 2 / (3 * classes.size), {"x": X}, {}),
    "a real power": (a * (s**2 + 1) ** a, {"s": S}, {"a": 1.3}),
}


@pytest.mark.parametrize("what", FEATURES)
def test_feature(what: str, tmp_path: Path) -> None:
    value, tensors, params = FEATURES[what]
    loss = Loss(value, name="probe", doc="A probe.")
    with np.errstate(all="ignore"):
        found = fuzzing.disagreements(Grown(loss, tensors, params), library([loss], tmp_path, f"feature_{next(serial)}", "-O0"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("p", [1, 2, 3, oo])
def test_tiny_norms(p: Any, tmp_path: Path) -> None:
    """Relative to the truth, however small that is: no power of an entry vanishes."""
    loss = Loss(Norm(x[c], c, p), name="probe", doc="A probe.")
    truth = exact(check(loss)[0], {"x": SMALL}, reduction="none", upstream=np.ones(3))
    for module in library([loss], tmp_path, f"tiny_{next(serial)}", "-O0").values():
        value, grads = module.probe.value_and_grad(x=SMALL, reduction="none")
        np.testing.assert_allclose(value, truth.value.high, rtol=1e-14)
        np.testing.assert_allclose(grads[0], truth.grad["x"].high, rtol=1e-13)


MEANS = {
    "given by the weight": (s**2 * v, v**2 + 1, {"s": S, "v": T}),
    "moved by the input": (s**3, 1 + s**2, {"s": S}),
    "of a shared table": (w[y] * x[y] ** 2, w[y], {"x": X, "y": Y, "w": W}),
    "constant": (s**2, 2, {"s": S}),
}


@pytest.mark.parametrize("what", MEANS)
def test_weighted_mean(what: str, tmp_path: Path) -> None:
    value, mean_over, tensors = MEANS[what]
    loss = Loss(value, mean_over=mean_over, name="probe", doc="A probe.")
    found = fuzzing.disagreements(Grown(loss, tensors, {}), library([loss], tmp_path, f"mean_{next(serial)}", "-O0"))
    assert not found, "\n".join(found)


SECOND = {
    "pointwise": (exp(s * t), {"s": S, "t": T}),
    "row": (LogSumExp(x[c], c), {"x": X}),
    "norm": (Norm(x[c], c), {"x": X}),
    "pairs": (Sum(Sum(x[c] * x[d] * z[d], d) ** 2, c), {"x": X, "z": Z}),
    "gather": (Sum(x[k[f]], f) ** 3, {"x": X, "k": K}),
    "shared": (Sum(w[c] ** 2 * x[c] ** 2, c), {"w": W, "x": X}),
}


@pytest.mark.parametrize("what", SECOND)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_diagonal_and_batchmean(what: str, reduction: str, tmp_path: Path) -> None:
    value, tensors = SECOND[what]
    loss = Loss(value, name="probe", doc="A probe.", reductions=("none", "mean", "sum", "batchmean"))
    form = select(check(loss), {})
    real = [t.name for t in form.differentiable if t.name in tensors]
    upstream: Any = np.array([1.0, -2.0, 0.5]) if reduction == "none" else 1.5
    truth = exact(form, tensors, reduction=reduction, upstream=upstream, diagonal=True, wrt=real)
    for module in library([loss], tmp_path, f"second_{next(serial)}", "-O0").values():
        value_, grads = module.probe.value_and_grad(**tensors, reduction=reduction, wrt=real, upstream=upstream)
        np.testing.assert_allclose(value_, truth.value.high, rtol=1e-12)
        diagonal = module.probe.hessian_diag(**tensors, reduction=reduction, wrt=real, upstream=upstream)
        for name, grad, second in zip(real, grads, diagonal, strict=True):
            np.testing.assert_allclose(grad, truth.grad[name].high, rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(second, truth.hessian_diag[name].high, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("names", [("n", "c", "i"), ("b", "f", "c2"), ("b2", "rows", "n2"), ("x_row", "x_batch", "x_classes"),
                                   ("k", "e", "x")])
def test_names_do_not_clash(names: tuple[str, ...], tmp_path: Path) -> None:
    """Names that the emitted loops might use for themselves."""
    one, two, three = tensor(names[0], classes), tensor(names[1]), param(names[2], default=1.5)
    loss = Loss(Sum(exp(one[c]) * Sum(one[d] * two, d), c) * three + log(Sum(exp(one[c]), c)), name="probe", doc="A probe.")
    grown = Grown(loss, {names[0]: X, names[1]: S}, {names[2]: 1.5})
    assert not fuzzing.disagreements(grown, library([loss], tmp_path, f"clash_{next(serial)}", "-O0"))


@pytest.mark.parametrize("name", ["n", "c", "batch_size", "classes_2", "max_x", "log_sum_exp", "largest", "others", "ties",
                                  "product"])
def test_names_of_tensors_do_not_clash(name: str, tmp_path: Path) -> None:
    one = tensor(name, classes)
    loss = Loss(-log(exp(one[y]) / Sum(exp(one[c]), c)), name="probe", doc="A probe.")
    targets = library([loss], tmp_path, f"one_{next(serial)}", "-O0")
    assert not fuzzing.disagreements(Grown(loss, {name: X, "y": Y}, {}), targets)


def test_emitted_documentation_has_the_definition() -> None:
    loss = Loss(s**2 * a, name="probe", doc="A probe.\n\nSays more.", notes=("It differs.",), like="peer.probe")
    text = emit.emit_loss(loss, "docs", "test").files["src/docs/losses/probe.py"]
    assert all(word in text for word in ("A probe.", "Says more.", "It differs.", "peer.probe", "class ProbeFunction"))

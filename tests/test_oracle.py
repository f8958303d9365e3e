"""The oracle against closed forms, mpmath, paper, and torch where that is well-conditioned; never against itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from flint import ctx

from losscomp import atoms
from losscomp.check import check
from losscomp.language import (
    Abs,
    Delta,
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
    option,
    param,
    pi,
    sqrt,
    stated,
    stop_gradient,
    straight_through,
    table,
    tanh,
    tensor,
)
from losscomp.oracle import Exact, OracleError, Truth, exact, select, ulp_error

INF, NAN = math.inf, math.nan
x, y = tensor("x"), tensor("y")
delta = param("delta", default=1, positive=True)
huber = Loss(Piecewise(((x - y)**2 / 2, Abs(x - y) < delta), (delta * (Abs(x - y) - delta / 2), True)))
bce = Loss(log(1 + exp(x)) - x * y)

classes = axis("classes")
c = classes.index()
logits = tensor("input", classes)
label = index("target", into=classes, ignore="ignore_index")
weight = tensor("weight", classes, per_sample=False, optional=True)
smoothing = param("smoothing", default=0, between=(0, 1))
log_p = table("log_p", c, log(exp(logits[c]) / Sum(exp(logits[c]), c)))
cross_entropy = Loss(-(1 - smoothing) * weight[label] * log_p(label)
                     - smoothing / classes.size * Sum(weight[c] * log_p(c), c), mean_over=weight[label])

RNG = np.random.default_rng(7)


def truth(loss: Loss, tensors: dict[str, Any], params: dict[str, Any] | None = None, **how: Any) -> Truth:
    """The oracle's answer for the variant of these parameters."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    return exact(select(check(loss), params or {}), arrays, params or {}, **how)


def along(loss: Any, **tensors: Any) -> tuple[list[float], ...]:
    """Value, slope and curve of a formula in x, at several points."""
    result = truth(Loss(loss), tensors, reduction="none", wrt=["x"], diagonal=True)
    return tuple(e.high.tolist() for e in (result.value, result.grad["x"], result.hessian_diag["x"]))


def number(value: Any) -> Any:
    """A float, exactly, or an mpmath number as it is."""
    return value if isinstance(value, mp.mpf) else mp.mpf(float(value))


def close(got: Exact, expected: Any, bits: int = 64) -> None:
    """The exact result has the expected numbers, far beyond float64."""
    expected = np.asarray(expected, dtype=object)
    assert got.high.shape == expected.shape
    for high, low, want in zip(got.high.flat, got.low.flat, expected.flat, strict=True):
        want = number(want)
        if not mp.isfinite(want) or abs(want) > mp.mpf(2)**1024:
            assert high == float(want) and low == 0, (high, want)
        else:
            error = abs(mp.mpf(float(high)) + mp.mpf(float(low)) - want)
            assert error <= abs(want) * mp.mpf(2)**-bits + mp.mpf(2)**-1075, (high, low, want, error)


def by_differences(function: Callable[..., Any], loss: Loss, tensors: dict[str, Any], params: dict[str, Any] | None = None,
                   wrt: tuple[str, ...] = ("x",), **how: Any) -> Truth:
    """Hold value, gradient and second order against mpmath's differences of a function of arrays of its numbers."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    directions = {name: RNG.integers(-4, 5, arrays[name].shape) / 2 for name in wrt}
    got = truth(loss, tensors, params, wrt=wrt, directions=directions, diagonal=True, **how)
    with mp.workdps(80):
        high = {name: np.array([number(v) for v in a.flat], dtype=object).reshape(a.shape) if a.dtype.kind == "f" else a
                for name, a in arrays.items()}

        def moved(cell: tuple[str, Any], s: Any, t: Any, directed: bool = True) -> Any:
            inputs = {n: a.copy() for n, a in high.items()}
            for n in wrt if directed else ():
                inputs[n] = inputs[n] + t * np.array([number(v) for v in directions[n].flat], dtype=object).reshape(a_shape(n))
            inputs[cell[0]][cell[1]] += s
            return function(**inputs)

        def a_shape(n: str) -> tuple[int, ...]:
            return arrays[n].shape

        close(got.value, function(**high))
        for n in wrt:
            want = [np.empty(a_shape(n), dtype=object) for _ in range(3)]
            for at in np.ndindex(*a_shape(n)):
                cell = (n, at)
                want[0][at] = mp.diff(lambda s: moved(cell, s, 0, False), 0)                 # noqa: B023
                want[1][at] = mp.diff(lambda s, t: moved(cell, s, t), (0, 0), (1, 1))        # noqa: B023
                want[2][at] = mp.diff(lambda s: moved(cell, s, 0, False), 0, 2)              # noqa: B023
            for have, wanted in zip((got.grad[n], got.hvp[n], got.hessian_diag[n]), want, strict=True):
                for a, b, w in zip(have.high.flat, have.low.flat, wanted.flat, strict=True):
                    assert abs(mp.mpf(float(a)) + mp.mpf(float(b)) - w) < mp.mpf(10)**-18 * (1 + abs(w)), (n, a, w)
    return got


# Losses as users write them

def test_huber_has_the_arm_of_the_kink_at_the_kink() -> None:
    at = [0.25, 1.0, -1.0, 3.0, -3.0, 0.0, 1 - 2.0**-52, 1.25]
    got = truth(huber, {"x": np.array(at) + 0.5, "y": np.full(8, 0.5)}, reduction="none", diagonal=True)
    assert got.value.high.tolist()[:6] == [0.03125, 0.5, 0.5, 2.5, 2.5, 0]
    assert got.grad["x"].high.tolist() == [0.25, 1, -1, 1, -1, 0, 1 - 2.0**-52, 1]
    assert (got.grad["y"].high == -got.grad["x"].high).all()
    assert got.hessian_diag["x"].high.tolist() == [1, 0, 0, 0, 0, 1, 1, 0]
    assert not got.grad["x"].low.any()


def test_huber_reductions_upstream_and_parameter() -> None:
    tensors = {"x": np.array([0.0, 4.0, -3.0]), "y": np.array([1.0, 1.0, 1.0])}
    params = {"delta": 2.0}                                             # values 0.5, 4, 6; slopes -1, 2, -2
    for reduction, value, scale in (("mean", 3.5, 1 / 3), ("sum", 10.5, 1), ("batchmean", 3.5, 1 / 3)):
        got = truth(huber, tensors, params, reduction=reduction, upstream=-0.5)
        assert got.value.high.shape == () and got.value.high == value
        np.testing.assert_allclose(got.grad["x"].high, np.array([-1, 2, -2]) * -0.5 * scale, rtol=1e-16)
    got = truth(huber, tensors, params, reduction="none", upstream=np.array([1.0, 10.0, 0.0]))
    assert got.value.high.tolist() == [0.5, 4, 6] and got.grad["x"].high.tolist() == [-1, 20, 0]


@pytest.mark.parametrize("at", [-1000.0, -745.5, -37.0, -1e-300, 0.0, 1e-300, 0.5, 36.9, 710.0, 1000.0])
@pytest.mark.parametrize("sample", [0.0, 0.25, 1.0])
def test_binary_cross_entropy_with_logits(at: float, sample: float) -> None:
    got = truth(bce, {"x": np.array([at]), "y": np.array([sample])}, reduction="sum", directions={"x": np.array([2.0])})
    with mp.workdps(1000):
        z = mp.mpf(at)
        e = mp.exp(-z)
        close(got.value, mp.log1p(1 / e) - z * mp.mpf(sample))
        close(got.grad["x"], [1 / (1 + e) - mp.mpf(sample)])
        close(got.hvp["x"], [2 * e / (1 + e)**2])
        close(got.grad["y"], [-z])
        close(got.hvp["y"], [mp.mpf(-2)])


def test_binary_cross_entropy_far_out() -> None:
    got = truth(bce, {"x": np.array([1e20, 1e20, -1e20, 1e300]), "y": np.array([0.0, 1.0, 0.5, 0.0])}, reduction="none")
    assert got.value.high.tolist() == [1e20, 0, 5e19, 1e300]
    assert got.grad["x"].high.tolist() == [1, 0, -0.5, 1]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_cross_entropy_as_torch_has_it(given: bool, smooth: float) -> None:
    torch = pytest.importorskip("torch", reason="the oracle against PyTorch is NOT TESTED: PyTorch is not installed")
    tensors = {"input": RNG.normal(size=(5, 4)), "target": np.array([1, 3, -100, 0, 1])}
    v, u = RNG.normal(size=(2, 5, 4))
    if given:
        tensors["weight"] = RNG.uniform(0.5, 2, 4)
    got = truth(cross_entropy, tensors, {"smoothing": smooth}, directions={"input": v})
    other = truth(cross_entropy, tensors, {"smoothing": smooth}, directions={"input": u})
    z = torch.tensor(tensors["input"], requires_grad=True)
    loss = torch.nn.functional.cross_entropy(z, torch.tensor(tensors["target"]), label_smoothing=smooth,
                                             weight=torch.tensor(tensors["weight"]) if given else None)
    grad, = torch.autograd.grad(loss, z, create_graph=True)
    product, = torch.autograd.grad((grad * torch.tensor(v)).sum(), z)
    np.testing.assert_allclose(got.value.high, loss.detach(), rtol=1e-14)
    np.testing.assert_allclose(got.grad["input"].high, grad.detach(), atol=1e-15)
    np.testing.assert_allclose(got.hvp["input"].high, product, atol=1e-15)
    np.testing.assert_allclose((u * got.hvp["input"].high).sum(), (v * other.hvp["input"].high).sum(), rtol=1e-13)
    assert not got.grad["input"].high[2].any()                          # the ignored sample
    assert ("weight" in got.grad) == given


def test_cross_entropy_by_its_weights_follows_the_quotient_rule() -> None:
    labels = [0, 2, 2]

    def function(input: Any, weight: Any, target: Any) -> Any:
        log_p = [[z - mp.log(sum(map(mp.exp, row))) for z in row] for row in input]
        s = mp.mpf(0.25)
        values = [-(1 - s) * weight[k] * row[k] - s / 3 * sum(w * v for w, v in zip(weight, row, strict=True))
                  for k, row in zip(labels, log_p, strict=True)]
        return sum(values) / sum(weight[k] for k in labels)

    tensors = {"input": RNG.normal(size=(3, 3)), "weight": np.array([0.5, 1.25, 3.0]), "target": np.array(labels)}
    by_differences(function, cross_entropy, tensors, {"smoothing": 0.25}, wrt=("input", "weight"))


def test_a_denominator_may_depend_on_the_inputs() -> None:
    loss = Loss(x**3 * y, mean_over=x**2 + y)
    tensors = {"x": [0.5, -1.5, 2.0], "y": [1.0, 0.75, 0.125]}
    by_differences(lambda x, y: (x**3 * y).sum() / (x**2 + y).sum(), loss, tensors, wrt=("x", "y"))


def test_cross_entropy_at_extremes() -> None:
    rows = np.array([[0.0, 1000.0, -1000.0], [1e20, -1e20, 0.0], [-1e-300, 0.0, 1e-300]])
    got = truth(cross_entropy, {"input": rows, "target": np.array([1, 1, 2])}, reduction="none")
    with mp.workdps(700):
        close(got.value, [mp.log1p(mp.exp(-1000) + mp.exp(-2000)), mp.mpf(2e20),
                          mp.log(mp.exp(mp.mpf(-1e-300)) + 1 + mp.exp(mp.mpf(1e-300))) - mp.mpf(1e-300)])
        close(Exact(got.grad["input"].high[:1], got.grad["input"].low[:1]), [[mp.exp(-1000), -mp.exp(-1000), mp.mpf(0)]])
    assert got.grad["input"].high[1].tolist() == [1, -1, 0]


def test_every_sample_ignored_is_nan_with_no_gradient() -> None:
    got = truth(cross_entropy, {"input": np.ones((2, 3)), "target": np.array([-100, -100])})
    assert np.isnan(got.value.high) and not got.grad["input"].high.any()


@pytest.mark.parametrize("scale", [1.0, 1e-160, 1e150])
def test_cosine_similarity(scale: float) -> None:
    d = axis("d")
    i = d.index()
    a, b = tensor("x", d), tensor("y", d)
    loss = Loss(1 - Sum(a[i] * b[i], i) / (Norm(a[i], i) * Norm(b[i], i)))
    first, second = np.array([[1.0, 2.0, -0.5]]) * scale, np.array([[0.3, 0.1, 4.0]])
    got = truth(loss, {"x": first, "y": second}, directions={"y": np.array([[1.0, 0.0, 2.0]])})
    with mp.workdps(60):
        p, q, v = (np.array([mp.mpf(float(z)) for z in row], dtype=object) for row in (first[0], second[0], [1.0, 0.0, 2.0]))
        n, m, dot = mp.sqrt(p @ p), mp.sqrt(q @ q), p @ q
        cos = dot / (n * m)
        close(got.value, 1 - cos)
        close(got.grad["x"], [-(q / (n * m) - cos * p / n**2)])
        rate = p @ v / (n * m) - cos * (q @ v) / m**2                   # of the cosine along v
        close(got.hvp["x"], [-(v / (n * m) - q * (q @ v) / (n * m**3) - rate * p / n**2)])


def test_identical_vectors_have_a_distance_of_zero() -> None:
    d = axis("d")
    i = d.index()
    a, b = tensor("x", d), tensor("y", d)
    same = np.array([[0.1, 0.2, 0.3], [1.0, 2.0, 4.0]])
    got = truth(Loss(1 - Sum(a[i] * b[i], i) / (Norm(a[i], i) * Norm(b[i], i))), {"x": same, "y": same}, reduction="none")
    assert not got.value.high.any() and not got.grad["x"].high.any()
    got = truth(Loss(Norm(a[i] - b[i], i)), {"x": same, "y": same}, diagonal=True)
    assert not got.value.high.any() and not got.grad["x"].high.any() and not got.hessian_diag["x"].high.any()


# Nodes

def test_a_maximum_shares_among_its_ties() -> None:
    d = axis("d")
    i = d.index()
    a = tensor("x", d)
    got = truth(Loss(MaxOver(a[i]**2, i)), {"x": np.array([[3.0, -3.0, 1.0], [1.0, 2.0, -4.0]])}, reduction="none",
                directions={"x": np.ones((2, 3))}, diagonal=True)
    assert got.value.high.tolist() == [9, 16]
    assert got.grad["x"].high.tolist() == [[3, -3, 0], [0, 0, -8]]
    assert got.hvp["x"].high.tolist() == [[1, 1, 0], [0, 0, 2]] == got.hessian_diag["x"].high.tolist()


def test_undecidable_ties_are_taken_as_equal() -> None:
    d = axis("d")
    i = d.index()
    a = tensor("x", d)
    got = truth(Loss(MaxOver(exp(a[i]), i)), {"x": np.array([[0.3, 0.3, 0.1]])})
    half = math.exp(0.3) / 2
    np.testing.assert_allclose(got.grad["x"].high, [[half, half, 0]], rtol=1e-15)
    third = Loss(Hinge(x / 3 - y * Rational(1, 3), tie=Rational(1, 4)))
    assert truth(third, {"x": [0.7], "y": [0.7]}).grad["x"].high == 0.25 / 3


def test_log_sum_exp() -> None:
    d = axis("d")
    i = d.index()
    a = tensor("x", d)
    by_differences(lambda x: sum(mp.log(sum(map(mp.exp, row))) for row in x), Loss(LogSumExp(a[i], i)),
                   {"x": RNG.normal(size=(2, 3))}, reduction="sum")
    by_differences(lambda x: mp.log(sum(mp.exp(z**2) for z in x[0])), Loss(LogSumExp(a[i]**2, i)), {"x": [[0.5, -1.0, 2.0]]})
    got = truth(Loss(LogSumExp(a[i], i)), {"x": np.array([[-INF, -INF], [-INF, 2.0], [1e20, -1e20]])}, reduction="none")
    assert got.value.high.tolist() == [-INF, 2, 1e20]
    assert got.grad["x"].high.tolist()[1:] == [[0, 1], [1, 0]]


def test_reductions_over_no_positions() -> None:
    d = axis("d")
    i = d.index()
    a = tensor("x", d)
    for body, expected in ((Sum(a[i], i), 0), (MaxOver(a[i], i), -INF), (LogSumExp(a[i], i), -INF)):
        got = truth(Loss(body), {"x": np.zeros((2, 0))}, reduction="none")
        assert got.value.high.tolist() == [expected, expected] and got.grad["x"].high.shape == (2, 0)


def test_gathers_deltas_and_sizes() -> None:
    d, k = axis("d"), axis("k")
    i, j = d.index(), k.index()
    a, places, names = tensor("x", d), index("p", k, into=d), index("q", into=d)
    loss = Loss(Sum(a[places[j]]**2, j) * d.size + Sum(Delta(i, names) * a[i], i) + Sum(Where(Ne(i, names), a[i], 0), i) * 10)
    got = truth(loss, {"x": [[2.0, 3.0, 5.0]], "p": [[2, 2]], "q": [1]}, diagonal=True)
    assert got.value.high == 50 * 3 + 3 + 70
    assert got.grad["x"].high.tolist() == [[10, 1, 2 * 5 * 2 * 3 + 10]]
    assert got.hessian_diag["x"].high.tolist() == [[0, 0, 12]]
    with pytest.raises(OracleError, match="x has no cell"):
        truth(loss, {"x": [[2.0, 3.0, 5.0]], "p": [[2, 3]], "q": [1]})
    with pytest.raises(OracleError, match="x has no cell"):
        truth(loss, {"x": [[2.0, 3.0, 5.0]], "p": [[2, -1]], "q": [1]})


def test_nested_reductions_keep_their_indices_apart() -> None:
    d = axis("d")
    i, j = d.index(), d.index()
    a = tensor("x", d)
    inner = Sum(exp(a[i] * a[j]), j)
    by_differences(lambda x: sum(mp.log(sum(mp.exp(p * q) for q in x[0])) * p for p in x[0]), Loss(Sum(a[i] * log(inner), i)),
                   {"x": [[0.5, -1.0, 0.25]]})


def test_stop_gradient_and_straight_through() -> None:
    got = along(stop_gradient(x) * x**2 + straight_through(Sign(x), tanh(x)), x=[2.0])
    with mp.workdps(50):
        t = mp.tanh(2)
        assert got[0] == [9.0]
        assert got[1] == [float(8 + 1 - t**2)] and got[2] == [float(4 - 2 * t * (1 - t**2))]


def test_stated_slopes_are_differentiated_as_they_stand() -> None:
    slow = stated(x**2 * y, {x: 5 * x * y})                             # the natural slope is 2 x y
    how: dict[str, Any] = {"reduction": "sum", "diagonal": True}
    got = truth(Loss(slow), {"x": [3.0], "y": [2.0]}, directions={"x": np.ones(1)}, **how)
    assert got.value.high == 18
    assert got.grad["x"].high == 5 * 3 * 2 and got.grad["y"].high == 9
    assert got.hessian_diag["x"].high == 10 and got.hessian_diag["y"].high == 0
    assert got.hvp["x"].high == 10 and got.hvp["y"].high == 6           # d/dx of x**2, the slope by y
    got = truth(Loss(slow), {"x": [3.0], "y": [2.0]}, directions={"y": np.ones(1)}, **how)
    assert got.hvp["x"].high == 15 and got.hvp["y"].high == 0
    got = truth(Loss(slow**2), {"x": [3.0], "y": [2.0]}, **how)         # (g**2)'' = 2 g' g' + 2 g g''
    assert got.grad["x"].high == 2 * 18 * 30 and got.hessian_diag["x"].high == 2 * 30 * 30 + 2 * 18 * 10


def test_stated_slopes_leave_other_reads_alone() -> None:
    d = axis("d")
    i = d.index()
    a = tensor("x", d)
    mine = tensor("z")
    loss = Loss(stated(mine * Sum(a[i]**2, i), {mine: 1}))
    got = truth(loss, {"x": [[1.0, 2.0]], "z": [3.0]}, directions={"z": np.ones(1)})
    assert got.grad["z"].high == 1 and got.grad["x"].high.tolist() == [[6, 12]]
    assert got.hvp["z"].high == 0 and got.hvp["x"].high.tolist() == [[2, 4]]


def test_where_selects_and_never_multiplies() -> None:
    assert along(Where(x > 0, sqrt(x), 0), x=[4.0, -1.0, 0.0]) == ([2, 0, 0], [0.25, 0, 0], [-1 / 32, 0, 0])
    both = Where((x > 0) & ~sp.Eq(x, 2) | (x < -5), 1 / (x - 2), x**2)
    assert along(both, x=[1.0, 2.0, -1.0, -6.0])[0] == [-1, 4, 1, -0.125]


def test_relations_at_a_tie_and_with_nan() -> None:
    expected = {sp.Lt: [1, 0, 0, 0], sp.Le: [1, 1, 0, 0], sp.Gt: [0, 0, 1, 0], sp.Ge: [0, 1, 1, 0], sp.Eq: [0, 1, 0, 0],
                sp.Ne: [1, 0, 1, 1]}
    for relation, holds in expected.items():
        assert along(Where(relation(x, y), 1, 0) + 0 * x, x=[1.0, 2.0, 3.0, NAN], y=[2.0] * 4)[0] == holds


def test_named_and_indices_in_conditions_are_transparent() -> None:
    square = named("square", x**2)
    assert along(square * square, x=[2.0]) == ([16], [32], [48])


def test_optional_weights_are_their_default_where_absent() -> None:
    sample = tensor("w", optional=True, default=2.0)
    loss = Loss(sample * x**2, mean_over=sample)
    absent = truth(loss, {"x": [1.0, 3.0]})
    assert absent.value.high == 5 and absent.grad["x"].high.tolist() == [1, 3] and "w" not in absent.grad
    given = truth(loss, {"x": [1.0, 3.0], "w": [1.0, 3.0]})             # (1 + 27) / 4; (x**2 - 7) / 4
    assert given.value.high == 7 and given.grad["w"].high.tolist() == [-1.5, 0.5]


# Functions: values, slopes and curves

POINTS = {"log1p": [-0.999, -1e-300, 0.0, 1e-20, 0.5, 1e20], "erf": [-30.0, -1.0, 0.0, 1e-300, 2.5, 1e20],
          "log": [5e-324, 1e-20, 0.5, 1.0, 1e300]}
ORDINARY = [-1000.0, -30.5, -1.0, -1e-8, -1e-300, 0.0, 1e-300, 1e-8, 0.5, 30.5, 700.0]
SMOOTH: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "softplus": (atoms.softplus, lambda z: mp.log1p(mp.exp(z)), lambda z: 1 / (1 + mp.exp(-z)),
                 lambda z: 1 / (2 + mp.exp(z) + mp.exp(-z))),
    "sigmoid": (atoms.sigmoid, lambda z: 1 / (1 + mp.exp(-z)), lambda z: 1 / (2 + mp.exp(z) + mp.exp(-z)),
                lambda z: -mp.tanh(z / 2) / (2 + mp.exp(z) + mp.exp(-z))),
    "log1p": (atoms.log1p, mp.log1p, lambda z: 1 / (1 + z), lambda z: -1 / (1 + z)**2),
    "expm1": (atoms.expm1, lambda z: mp.exp(z) - 1, mp.exp, mp.exp),
    "expm1mx": (atoms.expm1mx, lambda z: mp.exp(z) - 1 - z, lambda z: mp.exp(z) - 1, mp.exp),
    "exp": (exp, mp.exp, mp.exp, mp.exp),
    "log": (log, mp.log, lambda z: 1 / z, lambda z: -1 / z**2),
    "tanh": (tanh, mp.tanh, lambda z: mp.sech(z)**2, lambda z: -2 * mp.tanh(z) * mp.sech(z)**2),
    "erf": (erf, mp.erf, lambda z: 2 / mp.sqrt(mp.pi) * mp.exp(-z * z), lambda z: -4 * z / mp.sqrt(mp.pi) * mp.exp(-z * z)),
    "sin": (sp.sin, mp.sin, mp.cos, lambda z: -mp.sin(z)),
    "cos": (sp.cos, mp.cos, lambda z: -mp.sin(z), lambda z: -mp.cos(z)),
    "sinh": (sp.sinh, mp.sinh, mp.cosh, mp.sinh),
    "cosh": (sp.cosh, mp.cosh, mp.sinh, mp.cosh),
    "atan": (sp.atan, mp.atan, lambda z: 1 / (1 + z * z), lambda z: -2 * z / (1 + z * z)**2),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions(name: str) -> None:
    function, *expected = SMOOTH[name]
    points = POINTS.get(name, ORDINARY)
    got = truth(Loss(function(x)), {"x": points}, reduction="none", diagonal=True)
    with mp.workdps(1400):
        for have, want in zip((got.value, got.grad["x"], got.hessian_diag["x"]), expected, strict=True):
            close(have, [want(mp.mpf(z)) for z in points])


KINKS = {
    "Abs": (Abs(x), [2, 0, 3], [-1, 0, 1]),
    "Sign": (Sign(x), [-1, 0, 1], [0, 0, 0]),
    "step": (atoms.step(x, Rational(1, 4)), [0, 0.25, 1], [0, 0, 0]),
    "hinge": (Hinge(x, tie=Rational(1, 4)), [0, 0, 3], [0, 0.25, 1]),
    "larger": (Max(x, -x / 2, tie=Rational(1, 4)), [1, 0, 3], [-0.5, 0.25 - 0.375, 1]),
    "smaller": (Min(x, -x / 2, tie=Rational(1, 4)), [-2, 0, -1.5], [1, 0.25 - 0.375, -0.5]),
    "same": (atoms.same(x, 3), [0, 0, 1], [0, 0, 0]),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks(name: str) -> None:
    formula, values, slopes = KINKS[name]
    assert along(formula + 0 * y, x=[-2.0, 0.0, 3.0]) == (values, slopes, [0, 0, 0])


def test_kinks_of_moving_arguments_bend_as_their_arms_do() -> None:
    assert along(Max(x**2, x**3, tie=Rational(1, 4)), x=[0.5, 1.0, 2.0]) == ([0.25, 1, 8], [1, 2.75, 12], [2, 5, 12])
    assert along(Abs(x**2 - 1), x=[0.5, 1.0, 2.0]) == ([0.75, 0, 3], [-1, 0, 4], [-2, 0, 2])


def test_roots_and_powers_are_flat_at_zero() -> None:
    points = [0.0, 4.0]
    assert along(Sqrt(x), x=points) == ([0, 2], [0, 0.25], [0, -1 / 32])
    assert along(atoms.inverse_root(x), x=points) == ([0, 0.5], [0, -1 / 16], [0, 3 / 128])
    assert along(sqrt(x), x=points) == ([0, 2], [INF, 0.25], [-INF, -1 / 32])
    points = [0.0, 4.0, -4.0]
    three = Rational(3, 2)
    assert along(atoms.abs_power(x, three), x=points) == ([0, 8, 8], [0, 3, -3], [0, 0.375, 0.375])
    assert along(atoms.signed_power(x, three), x=points) == ([0, 8, -8], [0, 3, 3], [0, 0.375, -0.375])
    assert along(atoms.abs_power(x, 2), x=points) == ([0, 16, 16], [0, 8, -8], [0, 2, 2])
    assert along(atoms.abs_power(x, 1), x=points) == ([0, 4, 4], [0, 1, -1], [0, 0, 0])


def test_powers() -> None:
    assert along(x**3, x=[0.0, -2.0]) == ([0, -8], [0, 12], [0, -12])
    assert along(x**-1, x=[0.5, -2.0]) == ([2, -0.5], [-4, -0.25], [16, -0.25])
    assert along(x**delta, x=[0.0, -2.0, 3.0]) == ([0, -2, 3], [1, 1, 1], [0, 0, 0])
    assert along(x**y, x=[0.0, 0.0, -2.0, 2.0, 0.0], y=[2.0, 0.5, 3.0, -1.0, 0.0]) == (
        [0, 0, -8, 0.5, 1], [0, INF, 12, -0.25, 0], [2, -INF, -12, 0.25, 0])
    by_differences(lambda x, y: sum(a**b for a, b in zip(x, y, strict=True)), Loss(x**y), {"x": [0.3, 7.0], "y": [2.2, -0.7]},
                   wrt=("x", "y"), reduction="sum")
    got = truth(Loss(x**y), {"x": [0.0], "y": [3.0]}, wrt=["y"], diagonal=True)
    assert got.grad["y"].high == 0 and got.hessian_diag["y"].high == 0
    got = truth(Loss(x**y), {"x": [0.0], "y": [1.0]}, wrt=["x", "y"], diagonal=True)
    assert got.grad["x"].high == 1 and got.hessian_diag["x"].high == 0 and got.grad["y"].high == 0


def test_x_log_y() -> None:
    got = truth(Loss(atoms.xlogy(x, y)), {"x": [0.0, 0.0, 0.0], "y": [0.5, 0.0, 2.0]}, reduction="none",
                directions={"x": np.ones(3)}, diagonal=True)
    assert not got.value.high.any()
    assert got.grad["x"].high.tolist() == [-math.log(2), -INF, math.log(2)]
    assert got.grad["y"].high[[0, 2]].tolist() == [0, 0] and got.hvp["y"].high.tolist() == [2, INF, 0.5]
    by_differences(lambda x, y: x[0] * mp.log(y[0]), Loss(atoms.xlogy(x, y)), {"x": [0.3], "y": [1e-3]}, wrt=("x", "y"))


def test_remainders() -> None:
    assert along(sp.Mod(x, y), x=[7.5, -1.0], y=[2.0, 3.0]) == ([1.5, 2], [1, 1], [0, 0])


def test_constants_and_numbers_are_exact() -> None:
    got = truth(Loss(x * pi / 3 + sp.E + sp.GoldenRatio + 0.1), {"x": [1.0]})
    with mp.workdps(60):
        close(got.value, mp.pi / 3 + mp.e + mp.phi + mp.mpf(0.1))
        assert abs(mp.mpf(float(got.value.high)) - (mp.pi / 3 + mp.e + mp.phi + mp.mpf(0.1))) < mp.mpf(2)**-51
    assert float(truth(Loss(log(x)), {"x": [2.0]}).value.low) == 2.3190468138462996e-17          # log 2 to 106 bits


def test_single_precision_inputs_count_exactly() -> None:
    got = truth(Loss(x * 1), {"x": np.array([0.1], dtype=np.float32)})
    assert got.value.high == float(np.float32(0.1)) and got.value.low == 0


# NaN and infinity

@pytest.mark.parametrize("formula", [Abs(x), Sign(x), Hinge(x, tie=0), Max(x, 1, tie=0), Min(x, 1, tie=0), x**2, exp(x),
                                     atoms.softplus(x), atoms.sigmoid(x), Sqrt(x), log(x), atoms.xlogy(x, 2),
                                     atoms.abs_power(x, 3), atoms.xlogy(0, x), huber.value, bce.value, x**y, sp.sin(x),
                                     sp.Mod(x, 2)], ids=str)
def test_nan_in_nan_out(formula: sp.Expr) -> None:
    got = truth(Loss(formula + y), {"x": [NAN, 1.0], "y": [1.0, 1.0]}, reduction="none")
    assert np.isnan(got.value.high).tolist() == [True, False]
    assert not np.isnan(got.grad["x"].high[1])
    assert np.isnan(truth(Loss(formula + y), {"x": [NAN, 1.0], "y": [1.0, 1.0]}).value.high)


def test_nan_in_a_row_spoils_that_row_only() -> None:
    rows = np.array([[NAN, 1.0, 2.0], [0.0, 1.0, 2.0]])
    got = truth(cross_entropy, {"input": rows, "target": np.array([1, 1])})
    assert np.isnan(got.value.high) and np.isnan(got.grad["input"].high).tolist() == [[True] * 3, [False] * 3]


def test_infinities_are_those_of_the_formula() -> None:
    assert along(exp(x), x=[INF, -INF]) == ([INF, 0], [INF, 0], [INF, 0])
    assert along(1 / x, x=[INF, -INF]) == ([0, 0], [0, 0], [0, 0])
    assert along(x**2, x=[INF, -INF]) == ([INF, INF], [INF, -INF], [2, 2])
    assert along(Abs(x), x=[INF, -INF]) == ([INF, INF], [1, -1], [0, 0])
    assert along(tanh(x), x=[INF, -INF]) == ([1, -1], [0, 0], [0, 0])
    assert along(erf(x), x=[INF, -INF])[0] == [1, -1]
    assert along(-log(x), x=[0.0, INF])[:2] == ([INF, -INF], [-INF, 0])
    assert np.isnan(along(x - y, x=[INF], y=[INF])[0]) and np.isnan(along(x * y, x=[INF], y=[0.0])[0])
    assert np.isnan(along(sp.sin(x), x=[INF])[0]) and np.isnan(along(log(x), x=[-1.0])[0])


def test_derivatives_at_infinity_are_limits_where_these_exist() -> None:
    value, slope, curve = along(log(1 + exp(x)), x=[INF, -INF])         # naively, inf / inf
    assert (value, slope, curve) == ([INF, 0], [1, 0], [0, 0])
    plain = Loss(-log_p(label))
    got = truth(plain, {"input": np.array([[-INF, 0.0, 0.0]]), "target": np.array([0])})
    assert got.value.high == INF and got.grad["input"].high.tolist() == [[-1, 0.5, 0.5]]
    got = truth(plain, {"input": np.array([[-INF, 0.0, 0.0]]), "target": np.array([1])})
    assert got.value.high == math.log(2) and got.grad["input"].high.tolist() == [[0, -0.5, 0.5]]
    race = truth(Loss(log(exp(x) + exp(y))), {"x": [INF], "y": [INF]})  # which is larger?
    assert race.value.high == INF and np.isnan(race.grad["x"].high)


def test_overflow_of_the_result_is_infinite_and_of_a_step_on_the_way_is_not() -> None:
    assert along(exp(x) * exp(-x) + log(exp(x)), x=[1e300])[:2] == ([1e300], [1])
    assert along(exp(exp(x)), x=[1000.0])[0] == [INF]
    assert along(exp(-exp(x)), x=[1000.0])[0] == [0]
    assert along(x**2 / y, x=[1e300], y=[1e300])[:2] == ([1e300], [2])


# The interface

def test_no_samples() -> None:
    empty = {"x": np.zeros(0), "y": np.zeros(0)}
    assert truth(bce, empty, reduction="none").value.high.shape == (0,)
    assert truth(bce, empty, reduction="sum").value.high == 0
    got = truth(bce, empty, directions={"x": np.zeros(0)}, diagonal=True)
    assert np.isnan(got.value.high) and got.hvp["x"].high.shape == (0,)


def test_axes_of_size_one() -> None:
    got = truth(cross_entropy, {"input": np.array([[3.0], [-1e20]]), "target": np.array([0, 0])}, diagonal=True)
    assert got.value.high == 0 and not got.grad["input"].high.any() and not got.hessian_diag["input"].high.any()


def test_only_what_is_asked_for() -> None:
    got = truth(bce, {"x": [1.0], "y": [0.0]}, wrt=["y"])
    assert list(got.grad) == ["y"] and not got.hvp and not got.hessian_diag
    assert truth(bce, {"x": [1.0], "y": [0.0]}, wrt=[]).grad == {}


def test_precision_is_left_as_it_was() -> None:
    before = ctx.prec
    truth(bce, {"x": [1000.0], "y": [1.0]})
    with pytest.raises(OracleError):
        truth(bce, {"x": [1.0]})
    assert ctx.prec == before


@pytest.mark.parametrize(("tensors", "how", "message"), [
    ({"x": [1.0]}, {}, "y is missing"),
    ({"x": [1.0], "y": [1.0, 2.0]}, {}, "y has the shape"),
    ({"x": [[1.0]], "y": [1.0]}, {}, "x has the shape"),
    ({"x": [1.0], "y": [1.0]}, {"wrt": ["z"]}, "no derivative by 'z'"),
    ({"x": [1.0], "y": [1.0]}, {"directions": {"x": np.ones(2)}}, "the direction 'x'"),
    ({"x": [1.0], "y": [1.0]}, {"reduction": "average"}, "average"),
    ({"x": [1.0], "y": [1.0]}, {"upstream": [1.0]}, "upstream"),
])
def test_arguments_that_do_not_fit_are_errors(tensors: dict[str, Any], how: dict[str, Any], message: str) -> None:
    with pytest.raises(OracleError, match=message):
        truth(bce, tensors, **how)


def test_variants_are_chosen_by_value() -> None:
    full = option("full", default=False)
    p = param("p", default=2, special=(1, 2, sp.oo))
    forms = check(Loss(If(full, 1, 0) + Piecewise((Abs(x), Eq(p, 1)), (x**2, Eq(p, 2)), (Abs(x), Eq(p, sp.oo)), (x**p, True))))

    def settings(**params: Any) -> dict[str, Any]:
        return dict(select(forms, params).settings)

    assert settings() == {"full": sp.false, "p": 2}
    assert settings(full=True, p=1.0) == {"full": sp.true, "p": 1}
    assert settings(full=np.True_, p=3.0) == {"full": sp.true, "p": None}
    assert settings(p=INF) == {"full": sp.false, "p": sp.oo}
    got = exact(select(forms, {"p": 3.0, "full": True}), {"x": np.array([2.0])}, {"p": 3.0, "full": True})
    assert got.value.high == 9 and got.grad["x"].high == 12


def test_ulp_error() -> None:
    one = Exact(np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.array([0.0, 2.0**-54, -2.0**-54, 0.0, 0.0]))
    assert ulp_error([1.0, 1.0, 1 + 2.0**-52, 0.0, 5e-324], one, np.float64).tolist() == [0, 0.25, 1.25, 0, 1]
    assert ulp_error([1.0, 1 + 2.0**-23, 1 - 2.0**-23, 0.0, 2.0**-149], one, np.float32).tolist() == [
        0, 1 - 2.0**-31, 1 - 2.0**-31, 0, 1]
    top = float(np.finfo(np.float32).max)
    far = Exact(np.array([1e39, -1e39, 1e39, INF, INF, NAN, NAN, 1.0, top, 1.0]), np.zeros(10))
    got = ulp_error([INF, -INF, -INF, INF, 1.0, NAN, 1.0, NAN, INF, INF], far, np.float32)
    assert got.tolist() == [0, 0, INF, 0, INF, 0, INF, INF, INF, INF]
    assert ulp_error([top], Exact(np.array([top + 2.0**103]), np.zeros(1)), "float32").tolist() == [0.5]
    assert ulp_error([1e308], Exact(np.array([-1e308]), np.zeros(1)), np.float64) == INF
    assert ulp_error(np.float32(0.1), Exact(np.asarray(0.1), np.asarray(0.0)), np.float32).shape == ()

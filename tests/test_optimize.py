"""Losses as objectives of scipy.optimize, beside SciPy's differences and scikit-learn's estimators."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime, check_grad, minimize
from scipy.sparse import csr_array
from sklearn.datasets import load_iris
from sklearn.linear_model import HuberRegressor, LogisticRegression, Ridge

losslib = pytest.importorskip("losslib.numpy", reason="NOT CHECKED: the library is not built") and importlib.import_module("losslib")
optimize = pytest.importorskip("losslib.optimize", reason="NOT CHECKED: the library is not built")


def line(outliers: bool = True) -> tuple[Any, Any]:
    """Samples on a plane with a little noise, one in ten far off."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 3))
    y = x @ [3.0, -2.0, 0.5] + 1 + 0.1 * rng.normal(size=200)
    y[::10] += 20 * outliers
    return x, y


def solved(objective: Any, start: Any = None, **options: Any) -> Any:
    found = minimize(objective, objective.start if start is None else start, jac=True, hessp=objective.hessp, method="trust-ncg",
                     options={"gtol": 1e-11, **options})
    assert np.abs(found.jac).max() < 1e-8
    return found.x


WEIGHTS = np.random.default_rng(5).uniform(0.2, 2, 200)


@pytest.mark.parametrize("settings", [{}, {"intercept": True, "ridge": 0.3, "weights": WEIGHTS}, {"reduction": "sum", "weights": WEIGHTS}])
@pytest.mark.parametrize(("name", "labels", "arguments"), [
    ("huber_loss", "real", {"delta": 1.5}), ("binary_cross_entropy_with_logits", "two", {"pos_weight": 2.0}),
    ("poisson_nll_loss", "counts", {}), ("cross_entropy", "classes", {"label_smoothing": 0.1}), ("mse_loss", "pairs", {}),
    ("multilabel_soft_margin_loss", "tags", {})])
def test_gradient_and_hessian_are_those_of_differences(name: str, labels: str, arguments: Any, settings: Any) -> None:
    rng = np.random.default_rng(1)
    x, y = line()
    target = {"real": y, "two": (y > 1).astype(int), "counts": rng.poisson(2, 200), "classes": rng.integers(0, 4, 200),
              "pairs": rng.normal(size=(200, 2)), "tags": rng.integers(0, 2, (200, 3))}[labels]
    objective = optimize.objective(name, x, target, **settings, **arguments)
    at, way = rng.normal(size=objective.start.size), rng.normal(size=objective.start.size)
    value, gradient = objective(at)
    assert check_grad(objective.value, objective.gradient, at, epsilon=1e-7) < 3e-6 * max(1, np.abs(gradient).max())
    by_steps = approx_fprime(at, lambda p: objective.gradient(p) @ way, 1e-7)
    np.testing.assert_allclose(objective.hessp(at, way), by_steps, rtol=2e-5, atol=2e-5 * max(1, np.abs(gradient).max()))
    assert objective.value(objective.start) <= objective.value(np.zeros_like(at)) + 1e-12 and isinstance(value, float)
    if not settings:
        mean = getattr(losslib.numpy, name)(objective.predict(at), objective.labels, **arguments)
        assert value == pytest.approx(mean * (2 if labels == "pairs" else 1), rel=1e-12)          # a sample of pairs has two numbers


def test_a_robust_line_is_that_of_scikit_learn() -> None:
    """HuberRegressor chooses a scale too; at its scale the same line is the best, to the 5 digits that it has. Least squares with weights
    that are computed anew, again and again, find it to all digits."""
    x, y = line()
    theirs = HuberRegressor(epsilon=1.5, alpha=0.0, tol=1e-12, max_iter=10000).fit(x, y)
    ours = solved(optimize.objective("huber_loss", x, y, intercept=True, delta=1.5 * theirs.scale_))
    np.testing.assert_allclose(ours, [*theirs.coef_, theirs.intercept_], rtol=3e-5)
    columns, other = np.column_stack([x, np.ones(200)]), np.zeros(4)
    for _ in range(100):
        root = np.sqrt(np.minimum(1, 1.5 * theirs.scale_ / np.maximum(np.abs(y - columns @ other), 1e-9)))
        other = np.linalg.lstsq(columns * root[:, None], y * root)[0]
    np.testing.assert_allclose(ours, other, rtol=1e-9)
    squares = solved(optimize.objective("mse_loss", x, y, intercept=True))
    truth = np.array([3.0, -2.0, 0.5, 1.0])
    assert np.abs(ours - truth).max() < 0.1 < 1 < np.abs(squares - truth).max()


def test_ridge_and_logistic_regressions_are_those_of_scikit_learn() -> None:
    x, y = line(outliers=False)
    theirs = Ridge(alpha=2.0, tol=1e-12).fit(x, y, sample_weight=WEIGHTS)
    ours = solved(optimize.objective("mse_loss", csr_array(x), y, intercept=True, ridge=4.0, reduction="sum", weights=WEIGHTS), gtol=1e-10)
    np.testing.assert_allclose(ours, [*theirs.coef_, theirs.intercept_], rtol=1e-8)
    flowers, kinds = load_iris(return_X_y=True)
    theirs = LogisticRegression(C=0.5, tol=1e-7, max_iter=10000).fit(flowers, kinds)
    ours = solved(optimize.objective("cross_entropy", flowers, kinds, intercept=True, ridge=2.0, reduction="sum"), gtol=1e-9)
    coefficients, intercepts = ours.reshape(5, 3)[:-1], ours.reshape(5, 3)[-1]
    np.testing.assert_allclose(coefficients.T, theirs.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(intercepts - intercepts.mean(), theirs.intercept_ - theirs.intercept_.mean(), rtol=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_a_function_with_its_jacobian(together: bool) -> None:
    time = np.linspace(0, 3, 60)
    seen = 2 * np.exp(-1.5 * time)
    seen[::7] += 1
    scores = lambda p: p[0] * np.exp(-p[1] * time)
    slopes = lambda p: np.stack([np.exp(-p[1] * time), -p[0] * time * np.exp(-p[1] * time)], 1)

    def second(p: Any, way: Any, g: Any) -> Any:
        e = np.exp(-p[1] * time)
        return np.array([(g * -time * e).sum() * way[1], (g * (-time * e * way[0] + p[0] * time**2 * e * way[1])).sum()])

    given = {"jacobian": True} if together else {"jacobian": slopes}
    model = (lambda p: (scores(p), slopes(p))) if together else scores
    objective = optimize.objective("smooth_l1_loss", model, seen, beta=0.01, second=second, **given)
    at, way = np.array([1.3, 0.7]), np.array([0.4, -1.1])
    assert check_grad(objective.value, objective.gradient, at) < 1e-6
    by_steps = approx_fprime(at, lambda p: objective.gradient(p) @ way, 1e-7)
    np.testing.assert_allclose(objective.hessp(at, way), by_steps, rtol=1e-4)
    simpler = optimize.objective("smooth_l1_loss", model, seen, beta=0.01, **given)        # Gauss and Newton's
    assert simpler.hessp(at, at) @ at >= 0
    np.testing.assert_allclose(minimize(simpler, [1.0, 1.0], jac=True, hessp=simpler.hessp, method="trust-ncg").x, [2, 1.5], rtol=0.02)


@pytest.mark.parametrize(("make", "words"), [
    (lambda o: o("huber_loss", np.ones((3, 2)), np.ones(4)), r"samples of the shape \(3, 2\), the target has the shape \(4,\)"),
    (lambda o: o("huber_loss", np.ones(3), np.ones(3)), "Expected rows of features"),
    (lambda o: o("huber_loss", abs, np.ones(3)), "needs its Jacobian"),
    (lambda o: o("huber_loss", lambda p: p[:1] * np.ones(3), np.ones(3), jacobian=lambda p: np.ones((2, 3)))(np.ones(2)),
     r"Jacobian has the shape \(2, 3\).*\(3, 2\)"),
    (lambda o: o("huber_loss", np.ones((3, 2)), np.ones(3))(np.ones(3)), "there are 3 parameters, and the model has 2"),
    (lambda o: o("huber_loss", np.ones((3, 2)), np.ones(3), reduction="none"), "one number"),
    (lambda o: o("huber_loss", np.ones((3, 2)), np.ones(3), weights=np.ones(2)), "Give one weight for each"),
    (lambda o: o("huber_loss", np.ones((3, 2)), np.ones(3), weights=np.zeros(3)), "add up to 0"),
    (lambda o: o("huber_loss", np.ones((3, 2)), np.ones(3), ridge=-1), "at least 0"),
    (lambda o: o("huber_loss", np.ones((3, 2)), 1.0), "one label for each sample"),
])
def test_what_is_wrong_is_said(make: Any, words: str) -> None:
    with pytest.raises(optimize.ArgumentError.__mro__[1], match=words):
        make(optimize.objective)

"""Losses of regression and of distributions: the formulas of their peers, published numbers, integrals, and exact values in the tails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn import metrics
from torch import Tensor
from torch.distributions import Gamma, Laplace, NegativeBinomial, Normal, Poisson

RNG = np.random.default_rng(0)
X, Y, WEIGHT = RNG.normal(size=12) * 2, RNG.normal(size=12), RNG.uniform(0.2, 2, 12)
AMOUNT, WIDTH = np.abs(RNG.normal(size=12)) * 3, RNG.uniform(0.3, 3, 12)
ERROR, LINK = {"input": X, "target": Y}, {"input": X / 2, "target": AMOUNT}
COUNTS = {"input": X / 2, "target": np.arange(12.0) // 2}
MEAN = {"input": WIDTH, "target": AMOUNT}


def pinball(input: Tensor, target: Tensor, q: float) -> Tensor:
    return torch.maximum(q * (target - input), (q - 1) * (target - input))


def tweedie(mean: Tensor, target: Tensor, p: float) -> Tensor:
    """XGBoost's metric tweedie-nloglik."""
    return -target * mean**(1 - p) / (1 - p) + mean**(2 - p) / (2 - p)


def crps(input: Tensor, target: Tensor, std: Tensor) -> Tensor:
    z, standard = (target - input) / std, Normal(torch.zeros((), dtype=input.dtype), 1)
    return std * (z * (2 * standard.cdf(z) - 1) + 2 * standard.log_prob(z).exp() - 1 / math.sqrt(math.pi))


PEERS: dict[str, tuple[str, dict[str, np.ndarray], dict[str, Any], Callable[..., Tensor]]] = {
    "log_cosh, Keras": ("log_cosh_loss", ERROR, {}, lambda x, y: (x - y) + torch.nn.functional.softplus(-2 * (x - y)) - math.log(2)),
    "pseudo-Huber, XGBoost": ("pseudo_huber_loss", ERROR, {}, lambda x, y: torch.sqrt(1 + (x - y)**2) - 1),
    "pseudo-Huber, slope": ("pseudo_huber_loss", ERROR, {"delta": 2.5}, lambda x, y: 2.5**2 * (torch.sqrt(1 + ((x - y) / 2.5)**2) - 1)),
    "Charbonnier": ("charbonnier_loss", ERROR, {"eps": 0.3}, lambda x, y: torch.sqrt((x - y)**2 + 0.3**2)),
    **{f"quantile {q}": ("quantile_loss", ERROR, {"quantile": q}, lambda x, y, q=q: pinball(x, y, q)) for q in (0.1, 0.5, 0.9)},
    **{f"expectile {e}": ("expectile_loss", ERROR, {"expectile": e}, lambda x, y, e=e: torch.abs(e - (x > y).double()) * (x - y)**2)
       for e in (0.2, 0.5)},
    "gamma, log link": ("gamma_nll_loss", LINK, {}, lambda x, t: -Gamma(torch.ones_like(x), torch.exp(-x)).log_prob(t)),
    "gamma": ("gamma_nll_loss", MEAN, {"log_input": False}, lambda m, t: -Gamma(torch.ones_like(m), 1 / m).log_prob(t)),
    **{f"Tweedie {p}, log link": ("tweedie_loss", LINK, {"power": p}, lambda x, t, p=p: tweedie(torch.exp(x), t, p)) for p in (1.2, 1.5)},
    **{f"Tweedie {p}": ("tweedie_loss", MEAN, {"power": p, "log_input": False}, lambda m, t, p=p: tweedie(m, t, p)) for p in (1.2, 1.9)},
    "Tweedie 1": ("tweedie_loss", LINK, {"power": 1},
                  lambda x, t: -Poisson(torch.exp(x), validate_args=False).log_prob(t) - torch.lgamma(t + 1)),
    "Tweedie 2": ("tweedie_loss", MEAN, {"power": 2, "log_input": False}, lambda m, t: -Gamma(torch.ones_like(m), 1 / m).log_prob(t)),
    "Laplace": ("laplace_nll_loss", {**ERROR, "b": WIDTH}, {"full": True}, lambda x, y, b: -Laplace(x, b).log_prob(y)),
    **{f"negative binomial {a}": ("negative_binomial_nll_loss", COUNTS, {"alpha": a}, lambda x, t, a=a: -NegativeBinomial(
        1 / a, logits=x + math.log(a)).log_prob(t) + torch.lgamma(t + 1 / a) - math.lgamma(1 / a) - torch.lgamma(t + 1))
       for a in (1.0, 0.4)},
    "CRPS": ("gaussian_crps_loss", {**ERROR, "std": WIDTH}, {}, crps),
}


@pytest.mark.parametrize("what", PEERS)
def test_formulas_of_peers(what: str, T: Any, library: Any) -> None:
    """Value, gradient and curvature by every input."""
    name, arrays, params, formula = PEERS[what]
    inputs = [torch.tensor(a, requires_grad=True) for a in arrays.values()]
    rows = []
    for f in (lambda *at: getattr(T, name)(*at, **params, reduction="none"), formula):
        value = f(*inputs)
        first = torch.autograd.grad(value.sum(), inputs, create_graph=True)
        second = [torch.autograd.grad(g.sum(), inputs, allow_unused=True, materialize_grads=True, retain_graph=True)
                  if g.requires_grad else [torch.zeros_like(g)] * len(inputs) for g in first]
        rows.append([value, *first, *(s for some in second for s in some)])
    for found, expected in zip(*rows, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    found = getattr(library, name)(**arrays, **params, reduction="none")
    np.testing.assert_allclose(found, rows[1][0].detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["log_cosh_loss", "pseudo_huber_loss", "charbonnier_loss", "quantile_loss", "expectile_loss"])
def test_weights_multiply_and_the_mean_is_of_all(name: str, library: Any) -> None:
    loss = getattr(library, name)
    plain = loss(X, Y, reduction="none")
    np.testing.assert_allclose(loss(X, Y, weight=WEIGHT, reduction="none"), plain * WEIGHT, rtol=1e-14)
    np.testing.assert_allclose(loss(X, Y, weight=WEIGHT), np.mean(plain * WEIGHT), rtol=1e-14)


def test_published_numbers(library: Any) -> None:
    """The examples of keras.losses.log_cosh and tfa.losses.PinballLoss; scikit-learn's of mean_tweedie_deviance; a CRPS at its centre."""
    L = library
    assert abs(L.log_cosh_loss(np.array([1.0, 1, 0, 0]), np.array([0.0, 1, 0, 0])) - 0.108) < 1e-3
    assert abs(L.quantile_loss(np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 1, 1]), quantile=0.1) - 0.475) < 1e-15
    truth, mean = np.array([2.0, 0, 1, 4]), np.array([0.5, 0.5, 2, 2])
    deviance = 2 * (L.tweedie_loss(mean, truth, power=1, log_input=False)
                    - np.mean(np.where(truth > 0, truth - truth * np.log(np.where(truth > 0, truth, 1)), 0)))
    assert abs(deviance - 1.4260) < 1e-4
    assert abs(L.gaussian_crps_loss(np.zeros(1), np.zeros(1), np.ones(1)) - 0.2336949773) < 1e-10


@pytest.mark.parametrize("power", [1, 1.5, 1.8, 2])
def test_deviances_of_scikit_learn(power: float, library: Any) -> None:
    loss = lambda mean: library.tweedie_loss(mean, AMOUNT, power=power, log_input=False)
    np.testing.assert_allclose(2 * (loss(WIDTH) - loss(AMOUNT)), metrics.mean_tweedie_deviance(AMOUNT, WIDTH, power=power), rtol=1e-11)
    gamma = lambda mean: library.gamma_nll_loss(mean, AMOUNT, log_input=False)
    np.testing.assert_allclose(2 * (gamma(WIDTH) - gamma(AMOUNT)), metrics.mean_gamma_deviance(AMOUNT, WIDTH), rtol=1e-11)
    np.testing.assert_allclose(library.quantile_loss(X, Y, quantile=0.3), metrics.mean_pinball_loss(Y, X, alpha=0.3), rtol=1e-13)


@pytest.mark.parametrize(("metric", "name", "params", "arrays"), [
    ("gamma-nloglik", "gamma_nll_loss", {}, LINK), ("tweedie-nloglik@1.3", "tweedie_loss", {"power": 1.3}, LINK),
    ("mphe", "pseudo_huber_loss", {}, ERROR)])
def test_metrics_of_xgboost(metric: str, name: str, params: dict[str, Any], arrays: dict[str, np.ndarray], library: Any) -> None:
    xgboost = pytest.importorskip("xgboost", reason="agreement with XGBoost is NOT TESTED: XGBoost is not installed")
    link = "reg:gamma" if arrays is LINK else "reg:squarederror"
    data = xgboost.DMatrix(np.zeros((12, 1)), label=arrays["target"] + 1e-3, base_margin=arrays["input"])
    model = xgboost.train({"objective": link, "eval_metric": metric, "eta": 0.0, "nthread": 1, "max_depth": 1}, data, 1)
    found = float(model.eval(data).rsplit(":", 1)[1])
    assert abs(getattr(library, name)(arrays["input"], arrays["target"] + 1e-3, **params) - found) < 2e-5 * abs(found)


@pytest.mark.parametrize(("input", "target", "std"), [(0.0, 0.3, 1.0), (1.0, -2.0, 0.7), (-0.5, 4.0, 2.5)])
def test_the_score_is_its_integral(input: float, target: float, std: float, library: Any) -> None:
    """The squared distance of the predicted distribution from that of the outcome."""
    below, above = quad(lambda y: norm.cdf(y, input, std)**2, -30, target)[0], quad(lambda y: norm.sf(y, input, std)**2, target, 30)[0]
    found = library.gaussian_crps_loss(np.array([input]), np.array([target]), np.array([std]))
    assert abs(found - below - above) < 1e-7


def test_at_a_tie(library: Any) -> None:
    """The quantile loss has the derivative of XGBoost and LightGBM; distances have none, the others are smooth."""
    one = np.ones(1)
    assert library.quantile_loss.grad(one, one, quantile=0.2).input == 0.8
    assert library.laplace_nll_loss.grad(one, one, one).input == 0
    assert library.expectile_loss.grad(one, one, expectile=0.2).input == 0
    assert library.log_cosh_loss.hessian_diag(one, one).input == library.pseudo_huber_loss.hessian_diag(one, one).input == 1


FAR: dict[str, tuple[str, dict[str, float], dict[str, Any], Callable[..., Any]]] = {
    "log_cosh, near": ("log_cosh_loss", {"input": 1e-9, "target": 0.0}, {}, lambda x, y: mpmath.log(mpmath.cosh(x - y))),
    "log_cosh, far": ("log_cosh_loss", {"input": 1e5, "target": 0.0}, {}, lambda x, y: mpmath.log(mpmath.cosh(x - y))),
    **{f"pseudo-Huber, {e}": ("pseudo_huber_loss", {"input": e, "target": 0.0}, {"delta": 1e-3},
                              lambda x, y: mpmath.mpf(1e-3)**2 * (mpmath.sqrt(1 + (x / mpmath.mpf(1e-3))**2) - 1))
       for e in (1e-12, 1e200, 1e307)},
    "Charbonnier, far": ("charbonnier_loss", {"input": 1e300, "target": 0.0}, {}, lambda x, y: mpmath.sqrt(x**2 + mpmath.mpf(1e-3)**2)),
    "gamma, near": ("gamma_nll_loss", {"input": -1e-3, "target": 1e-3}, {}, lambda x, t: x + t * mpmath.exp(-x)),
    "gamma, nothing": ("gamma_nll_loss", {"input": -1000.0, "target": 0.0}, {}, lambda x, t: x + t * mpmath.exp(-x)),
    "Tweedie, nothing": ("tweedie_loss", {"input": -3000.0, "target": 0.0}, {"power": 1.5}, lambda x, t: 2 * mpmath.exp(x / 2)),
    "Tweedie, large": ("tweedie_loss", {"input": 1e250, "target": 1e100}, {"power": 1.5, "log_input": False},
                       lambda m, t: 2 * mpmath.sqrt(m) + 2 * t / mpmath.sqrt(m)),
    **{f"CRPS, {e}": ("gaussian_crps_loss", {"input": 0.0, "target": e, "std": s}, {}, lambda x, y, s: s * (
        (y - x) / s * mpmath.erf((y - x) / s / mpmath.sqrt(2)) + mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-((y - x) / s)**2 / 2)
        - 1 / mpmath.sqrt(mpmath.pi)))
       for e, s in ((1e-9, 1.0), (40.0, 1.0), (1e200, 1e-200), (1e-200, 1e200))},
}


@pytest.mark.parametrize("what", FAR)
def test_far_and_near(what: str, library: Any, T: Any) -> None:
    """Value and gradient where the formula as it stands overflows or cancels."""
    name, at, params, formula = FAR[what]
    arrays = {k: np.array([v]) for k, v in at.items()}
    with mpmath.workdps(700):
        exact = [mpmath.mpf(v) for v in at.values()]
        value = formula(*exact)
        slope = mpmath.diff(lambda x: formula(x, *exact[1:]), exact[0], h=max(abs(exact[0]), mpmath.mpf(10)**-9) * mpmath.mpf(10)**-230)
        expected = float(value), float(slope)
    found, grads = getattr(library, name).value_and_grad(**arrays, **params)
    np.testing.assert_allclose([float(found), grads.input[0]], expected, rtol=2e-15, atol=1e-305)
    x = torch.tensor(arrays.pop("input"), requires_grad=True)
    loss = getattr(T, name)(x, **{k: torch.tensor(v) for k, v in arrays.items()}, **params)
    np.testing.assert_allclose([loss.item(), torch.autograd.grad(loss, x)[0].item()], expected, rtol=2e-15, atol=1e-305)

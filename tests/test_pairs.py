"""Losses of pairs (preferences, ranks, distances) against the formulas of papers and peers, in torch and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

Formula = Callable[..., torch.Tensor]


def trl_dpo(pc: Any, pr: Any, rc: Any, rr: Any, beta: float, label_smoothing: float) -> torch.Tensor:
    """trl/trainer/dpo_trainer.py, loss_type "sigmoid"."""
    logits = (pc - pr) - (rc - rr)
    return -F.logsigmoid(beta * logits) * (1 - label_smoothing) - F.logsigmoid(-beta * logits) * label_smoothing


def trl_ipo(pc: Any, pr: Any, rc: Any, rr: Any, beta: float) -> torch.Tensor:
    """trl/trainer/dpo_trainer.py, loss_type "ipo"."""
    return ((pc - pr) - (rc - rr) - 1 / (2 * beta)) ** 2


def trl_simpo(pc: Any, pr: Any, beta: float, gamma: float, label_smoothing: float) -> torch.Tensor:
    """trl/trainer/cpo_trainer.py, loss_type "simpo", where gamma is divided by beta first."""
    logits = (pc - pr) - gamma / beta
    return -F.logsigmoid(beta * logits) * (1 - label_smoothing) - F.logsigmoid(-beta * logits) * label_smoothing


def ranknet(a: Any, b: Any, target: Any) -> torch.Tensor:
    """Burges et al., 2005: the cross-entropy of the probability that the first ranks higher."""
    return F.binary_cross_entropy_with_logits(a - b, target.expand(torch.broadcast_shapes(a.shape, b.shape)), reduction="none")


def contrastive(a: Any, b: Any, target: Any, margin: float) -> torch.Tensor:
    """Hadsell et al., 2006, equation 4: Y is 0 where a pair is similar."""
    d = torch.linalg.vector_norm(a - b, dim=-1)
    return (1 - target) * d**2 / 2 + target * torch.clamp(margin - d, min=0) ** 2 / 2


FORMULAS: list[tuple[str, Formula, tuple[str, ...], dict[str, float]]] = [
    ("dpo_loss", trl_dpo, ("logp",) * 4, {"beta": 0.1, "label_smoothing": 0.0}),
    ("dpo_loss", trl_dpo, ("logp",) * 4, {"beta": 0.5, "label_smoothing": 0.1}),
    ("ipo_loss", trl_ipo, ("logp",) * 4, {"beta": 0.1}),
    ("simpo_loss", trl_simpo, ("logp",) * 2, {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0}),
    ("simpo_loss", trl_simpo, ("logp",) * 2, {"beta": 2.5, "gamma": 1.4, "label_smoothing": 0.2}),
    ("ranknet_loss", ranknet, ("score", "score", "probability"), {}),
    ("contrastive_loss", contrastive, ("vector", "vector", "label"), {"margin": 1.0}),
    ("contrastive_loss", contrastive, ("vector", "vector", "label"), {"margin": 3.0}),
]


def drawn(kind: str, rng: np.random.Generator) -> torch.Tensor:
    shape = (12, 5) if kind == "vector" else (12,)
    values = {"logp": lambda: -rng.exponential(9, shape), "score": lambda: rng.normal(size=shape) * 2,
              "vector": lambda: rng.normal(size=shape) * 0.7, "probability": lambda: rng.choice([0, 0.5, 1, 0.2], shape),
              "label": lambda: rng.choice([0.0, 1.0], shape)}[kind]()
    return torch.tensor(values, requires_grad=kind in ("logp", "score", "vector"))


@pytest.mark.parametrize(("name", "formula", "kinds", "params"), FORMULAS)
def test_formula(name: str, formula: Formula, kinds: tuple[str, ...], params: dict[str, float], T: Any) -> None:
    """Value, gradient and its derivative along a direction."""
    rng = np.random.default_rng(5)
    inputs = [drawn(kind, rng) for kind in kinds]
    moving = [x for x in inputs if x.requires_grad]
    ways = [torch.tensor(rng.normal(size=x.shape)) for x in moving]
    results = []
    for value in (getattr(T, name)(*inputs, **params, reduction="none"), formula(*inputs, **params)):
        grads = torch.autograd.grad(value.sum(), moving, create_graph=True)
        seconds = torch.autograd.grad(sum((g * w).sum() for g, w in zip(grads, ways, strict=True)), moving)
        results.append((value, *grads, *seconds))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_references_and_targets_are_fixed(library: Any) -> None:
    one = np.ones(3)
    assert library.dpo_loss.grad(one, one, one, one)._fields == ("policy_chosen_logps", "policy_rejected_logps")
    assert library.ipo_loss.grad(one, one, one, one)._fields == ("policy_chosen_logps", "policy_rejected_logps")
    assert library.ranknet_loss.grad(one, one, one)._fields == ("input1", "input2")


def test_no_preference_costs_log_2(library: Any) -> None:
    x = np.array([-20.0, -3.0])
    assert library.dpo_loss(x, x, x, x) == pytest.approx(math.log(2), rel=1e-15)
    assert library.simpo_loss(x, x, gamma=0.0) == pytest.approx(math.log(2), rel=1e-15)
    assert library.ranknet_loss(x, x, np.array([0.5, 1.0])) == pytest.approx(math.log(2), rel=1e-15)


def test_gap_of_ipo(library: Any) -> None:
    """The loss is 0 at the gap 1 / (2 beta), and so is the gradient."""
    value, grad = library.ipo_loss.value_and_grad(np.array([-1.0]), np.array([-3.0]), np.zeros(1), np.zeros(1), beta=0.25)
    assert value == 0 and grad.policy_chosen_logps == [0]


def test_even_odds_of_ranknet(library: Any) -> None:
    """With the target 1/2 the slope is tanh(d / 2) / 2, also for the smallest differences."""
    for dtype in (np.float32, np.float64):
        a = np.array([1e-7, -1e-20, 3e-38, 0.0], dtype)
        found = library.ranknet_loss.grad(a, np.zeros(4, dtype), np.full(4, 0.5, dtype), reduction="sum")
        np.testing.assert_allclose(found.input1, a / 4, rtol=1e-6)
        np.testing.assert_allclose(found.input2, -a / 4, rtol=1e-6)


def test_similar_pairs_have_the_target_0(library: Any) -> None:
    a, b = np.array([[0.0, 0.0]] * 3), np.array([[0.3, 0.4], [0.3, 0.4], [3.0, 4.0]])
    found = library.contrastive_loss(a, b, np.array([0.0, 1.0, 1.0]), reduction="none")
    np.testing.assert_allclose(found, [0.125, 0.125, 0.0], rtol=1e-15)
    same = library.contrastive_loss.grad(a, a, np.array([0.0, 1.0, 0.0]))
    assert not same.input1.any() and not same.input2.any()

"""Focal losses: any gamma over the whole float range, against exact arithmetic, other people's numbers, and losses that they become."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losscomp import catalogue, sampling, verify
from losscomp.check import check

DEFINITIONS = catalogue.load(catalogue.builtin_definitions())
GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
FOCAL = [name for name, d in DEFINITIONS.items() if any(p.name == "gamma" for p in check(catalogue.forms_of(d)[0])[0].params)]


@pytest.mark.parametrize("stratum", sampling.STRATA)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_result_is_lost_for_any_gamma(gamma: float, stratum: str, dtype: str, targets: dict[str, Any], T: Any) -> None:
    """Value, gradient and second order of the focal loss of a logit, on every target."""
    definition = DEFINITIONS["sigmoid_focal_loss"]
    form, = check(catalogue.forms_of(definition)[0])
    found: dict[Any, verify.Row] = {}
    for alpha in (0.25, -1.0):
        tensors = sampling.samples(form, stratum, 24, dtype)
        tensors["target"][:16] = tensors["target"][:16].round()
        verify.compare(found, definition, form, tensors, {"alpha": alpha, "gamma": gamma}, dtype, stratum, {**targets, "torch": T}, False)
    lost = [f"{key}: {row.lost} of {row.points}: {row.example}" for key, row in found.items() if row.lost]
    assert len(found) == 9 and not lost, "\n".join(lost)


@pytest.mark.parametrize("stratum", sampling.STRATA)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_result_is_lost_with_classes(gamma: float, stratum: str, dtype: str, targets: dict[str, Any], T: Any) -> None:
    """The same of the focal loss of classes, with weights that are ordinary numbers."""
    definition = DEFINITIONS["focal_loss"]
    form, = check(catalogue.forms_of(definition)[0])
    found: dict[Any, verify.Row] = {}
    tensors = sampling.samples(form, stratum, 16, dtype)
    tensors["weight"] = np.array([1.0, 0.5, 2.0, 0.25], dtype)
    params = {"gamma": gamma, "ignore_index": -100}
    verify.compare(found, definition, form, tensors, params, dtype, stratum, {**targets, "torch": T}, False)
    lost = [f"{key}: {row.lost} of {row.points}: {row.example}" for key, row in found.items() if row.lost]
    assert len(found) == 9 and not lost, "\n".join(lost)


def torchvision_focal(inputs: torch.Tensor, targets: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """The formula of torchvision.ops.sigmoid_focal_loss, which is not installed here; accurate away from the tails."""
    p = torch.sigmoid(inputs)
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none") * (1 - p_t) ** gamma
    return loss if alpha < 0 else (alpha * targets + (1 - alpha) * (1 - targets)) * loss


@pytest.mark.parametrize("alpha", [0.25, 0.9, -1.0])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("soft", [False, True])
def test_formula_of_torchvision(alpha: float, gamma: float, soft: bool, T: Any) -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(4, 5)) * 2, requires_grad=True)
    t = torch.tensor(rng.uniform(0.05, 0.95, (4, 5)) if soft else rng.integers(0, 2, (4, 5)).astype(float))
    found, expected = T.sigmoid_focal_loss(x, t, alpha=alpha, gamma=gamma), torchvision_focal(x, t, alpha, gamma)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    for f, e in zip(*(torch.autograd.grad(v.sum(), x, create_graph=True) for v in (found, expected)), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-13)
    second = [torch.autograd.grad(torch.autograd.grad(v.sum(), x, create_graph=True)[0].sum(), x)[0] for v in (
        T.sigmoid_focal_loss(x, t, alpha=alpha, gamma=gamma), torchvision_focal(x, t, alpha, gamma))]
    torch.testing.assert_close(*second, rtol=1e-10, atol=1e-12)


def test_numbers_of_keras(library: Any) -> None:
    """keras/src/losses/losses_test.py: BinaryFocalCrossentropyTest.test_unweighted, CategoricalFocalCrossentropyTest.test_no_reduction."""
    logits = np.array([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]])
    target = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert abs(library.sigmoid_focal_loss(logits, target, alpha=-1.0, gamma=3.0, reduction="mean") - 0.799) < 1e-3
    p, label = np.array([[0.9, 0.8], [0.7, 0.2]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    assert abs(library.sigmoid_focal_loss(np.log(p / (1 - p)), label, alpha=-1.0, gamma=2.0, reduction="mean") - 0.268) < 1e-3
    classes = np.array([[8.0, 1.0, 1.0], [0.0, 9.0, 1.0], [2.0, 3.0, 5.0]])
    found = library.focal_loss(classes, np.arange(3), weight=np.full(3, 0.25), gamma=2.0, reduction="none")
    np.testing.assert_allclose(found, [1.5096224e-09, 2.4136547e-11, 0.0010360638], rtol=1e-3)  # theirs is clipped, in float32


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gamma_0_is_cross_entropy(reduction: str, T: Any) -> None:
    rng = np.random.default_rng(1)
    x, t = torch.tensor(rng.normal(size=(5, 4, 3)) * 3, requires_grad=True), torch.tensor(rng.integers(0, 4, (5, 3)))
    t[0, 0] = t[3, 2] = -100
    weight = torch.tensor(rng.uniform(0.2, 2, 4))
    values = [T.focal_loss(x, t, gamma=0.0, weight=weight, reduction=reduction), F.cross_entropy(x, t, weight, reduction=reduction)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in values), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("far", [100.0, 1000.0, 1e30, np.inf])
def test_certain_predictions(gamma: float, far: float, library: Any) -> None:
    """Right without doubt: no loss. Wrong without doubt: the cross-entropy alone, with its slope."""
    for dtype in (np.float32, np.float64):
        x, t = np.array([far, -far], dtype), np.array([1.0, 0.0], dtype)
        value, (grad,) = library.sigmoid_focal_loss.value_and_grad(x, t, alpha=-1.0, gamma=gamma, reduction="none")
        assert np.all(np.abs(value) <= 1e-43) and np.all(np.abs(grad) <= 1e-43), (value, grad)
        if np.isfinite(far):
            value, (grad,) = library.sigmoid_focal_loss.value_and_grad(x, 1 - t, alpha=-1.0, gamma=gamma, reduction="none")
            np.testing.assert_allclose(value, np.abs(x), rtol=1e-6)
            np.testing.assert_allclose(grad, np.sign(x), rtol=1e-6)


def test_the_default_reduction_is_none(library: Any) -> None:
    assert library.sigmoid_focal_loss(np.zeros((2, 3)), np.ones((2, 3))).shape == (2, 3)


def test_focal_losses_are_found() -> None:
    assert {"sigmoid_focal_loss", "focal_loss"} <= set(FOCAL)

"""Losses for noisy labels, large vocabularies, distributions and segmentation: plain formulas in PyTorch, numbers of peers and papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F

Tensor = torch.Tensor
RNG = np.random.default_rng(7)
LOGITS, OTHERS, LABELS = RNG.normal(size=(6, 5)) * 3, RNG.normal(size=(6, 5)) * 2, np.array([0, 4, 2, -100, 1, 3])
WEIGHT = RNG.uniform(0.2, 2, 5)
P, Q = RNG.uniform(0.05, 0.95, (6, 5)), (RNG.random((6, 5)) < 0.5).astype(float)
LOG_P, LOG_Q = (torch.log_softmax(torch.tensor(a), -1).numpy() for a in (LOGITS, OTHERS))
SIGNS = RNG.choice([-1.0, 1.0], (6, 5))


def label_p(x: Tensor, t: Tensor) -> Tensor:
    """The probability of the label; of class 0 where it is ignored."""
    return torch.softmax(x, -1).gather(-1, t.clamp(min=0)[:, None])[:, 0]


def masked(values: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
    """Nothing where the label is ignored."""
    return torch.where(t == -100, 0.0, values if weight is None else weight[t.clamp(min=0)] * values)


def symmetric(x: Tensor, t: Tensor, weight: Tensor, alpha: float, beta: float, log_zero: float) -> Tensor:
    one_hot = F.one_hot(t.clamp(min=0), x.shape[-1]).to(x)
    reverse = -(torch.softmax(x, -1) * torch.where(one_hot == 1, 0.0, log_zero)).sum(-1)
    return masked(alpha * F.cross_entropy(x, t.clamp(min=0), reduction="none") + beta * reverse, t, weight)


def capped(x: Tensor, t: Tensor, softcap: float, lse_square_scale: float, label_smoothing: float) -> Tensor:
    y = x if softcap == math.inf else softcap * torch.tanh(x / softcap)
    z = lse_square_scale * torch.logsumexp(y, -1) ** 2
    return masked(F.cross_entropy(y, t.clamp(min=0), reduction="none", label_smoothing=label_smoothing) + z, t)


def distilled(x: Tensor, t: Tensor, temperature: float) -> Tensor:
    log_q, log_p = torch.log_softmax(x / temperature, -1), torch.log_softmax(t / temperature, -1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def jensen(x: Tensor, t: Tensor, beta: float) -> Tensor:
    log_m = torch.log(beta * t.exp() + (1 - beta) * x.exp())
    return beta * F.kl_div(log_m, t, reduction="none", log_target=True) + (1 - beta) * F.kl_div(log_m, x, reduction="none", log_target=True)


def tversky(p: Tensor, t: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    hit, false, missed = (p * t).sum(-1), (p * (1 - t)).sum(-1), ((1 - p) * t).sum(-1)
    return 1 - (hit + smooth) / (hit + alpha * false + beta * missed + smooth)


# The loss, its tensors, its parameters, and the formula of one sample.
FORMULAS: list[tuple[str, tuple[np.ndarray, ...], dict[str, Any], Callable[..., Tensor]]] = [
    *(("hinge_loss", (LOGITS, SIGNS), {"margin": m}, lambda x, t, margin: torch.relu(margin - t * x)) for m in (1.0, 0.3)),
    *(("squared_hinge_loss", (LOGITS, SIGNS), {"margin": m}, lambda x, t, margin: torch.relu(margin - t * x) ** 2) for m in (1.0, 2.0)),
    *(("generalized_cross_entropy", (LOGITS, LABELS), {"q": q, "weight": WEIGHT},
       lambda x, t, q, weight: masked((1 - label_p(x, t) ** q) / q, t, weight)) for q in (0.7, 0.05, 1.0)),
    *(("symmetric_cross_entropy", (LOGITS, LABELS), {"alpha": a, "beta": b, "log_zero": z, "weight": WEIGHT}, symmetric)
      for a, b, z in ((1.0, 1.0, -4.0), (0.1, 1.0, -6.0), (6.0, 0.1, -9.0))),
    *(("soft_capped_cross_entropy", (LOGITS, LABELS), {"softcap": c, "lse_square_scale": z, "label_smoothing": s}, capped)
      for c in (4.0, 30.0, math.inf) for z in (0.0, 0.2) for s in (0.0, 0.1)),
    *(("distillation_loss", (LOGITS, OTHERS), {"temperature": k}, distilled) for k in (1.0, 2.0, 3.0)),
    *(("jensen_shannon", (LOG_P, LOG_Q), {"beta": b}, jensen) for b in (0.5, 0.1)),
    ("total_variation", (P, OTHERS), {}, lambda x, t: (x - t).abs().sum(-1) / 2),
    *(("tversky_loss", (P, Q), {"alpha": a, "beta": b, "smooth": s}, tversky) for a, b, s in ((0.5, 0.5, 1.0), (0.3, 0.7, 0.0))),
    ("dice_loss", (P, Q), {"smooth": 0.5}, lambda p, t, smooth: 1 - (2 * (p * t).sum(-1) + smooth) / (p.sum(-1) + t.sum(-1) + smooth)),
    ("jaccard_loss", (P, Q), {"smooth": 0.5},
     lambda p, t, smooth: 1 - ((p * t).sum(-1) + smooth) / ((p + t - p * t).sum(-1) + smooth)),
]


def second_order(loss: Tensor, x: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the sum, and the Hessian times a direction."""
    grad, = torch.autograd.grad(loss.sum(), x, create_graph=True)
    if not grad.requires_grad:
        return grad, torch.zeros_like(x)
    product, = torch.autograd.grad((grad * along).sum(), x, allow_unused=True)
    return grad.detach(), torch.zeros_like(x) if product is None else product + torch.zeros_like(x)


@pytest.mark.parametrize(("name", "tensors", "params", "formula"), FORMULAS, ids=[f"{f[0]}-{k}" for k, f in enumerate(FORMULAS)])
def test_formulas(name: str, tensors: tuple[np.ndarray, ...], params: dict[str, Any], formula: Callable[..., Tensor], library: Any,
                  T: Any) -> None:
    """Value, gradient and product with the Hessian, away from where a plain formula loses its digits."""
    given = [torch.tensor(a) for a in tensors]
    given[0].requires_grad_()
    tensor_params = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in params.items()}
    along = torch.tensor(np.random.default_rng(1).normal(size=tensors[0].shape))
    expected = formula(*given, **tensor_params)
    grad, product = second_order(expected, given[0], along)
    ours = getattr(library, name)
    value, grads = ours.value_and_grad(*tensors, **params, reduction="none")
    hvp = ours.hvp(*tensors, **params, reduction="none", direction={"input": along.numpy()})
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(grads.input, grad, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(hvp.input, product, rtol=1e-9, atol=1e-12)
    found = getattr(T, name)(*given, **tensor_params, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    for a, b in zip(second_order(found, given[0], along), (grad, product), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_smoothing_and_z_loss_together(library: Any) -> None:
    """The gradient is softmax (1 + 2 scale lse) less the smoothed labels; a kernel once multiplied the smoothing by that factor too."""
    x, scale, eps = torch.tensor(LOGITS[:3]), 0.3, 0.2
    labels = F.one_hot(torch.tensor(LABELS[:3]), 5).double()
    smoothed = (1 - eps) * labels + eps / 5
    factor = (1 + 2 * scale * torch.logsumexp(x, -1))[:, None]
    grads = library.soft_capped_cross_entropy.grad(LOGITS[:3], LABELS[:3], reduction="sum", softcap=math.inf, lse_square_scale=scale,
                                                   label_smoothing=eps)
    np.testing.assert_allclose(grads.input, torch.softmax(x, -1) * factor - smoothed, rtol=1e-12, atol=1e-14)
    wrong = (torch.softmax(x, -1) - eps / 5) * factor - (1 - eps) * labels
    assert np.abs(grads.input - wrong.numpy()).max() > 0.01


@pytest.mark.parametrize("name", ["generalized_cross_entropy", "symmetric_cross_entropy", "soft_capped_cross_entropy"])
def test_the_mean_leaves_ignored_labels_out(name: str, library: Any) -> None:
    loss = getattr(library, name)
    kept = LABELS != -100
    given = {} if name.startswith("soft") else {"weight": WEIGHT}
    divisor = WEIGHT[LABELS[kept]].sum() if given else kept.sum()
    rows = loss(LOGITS, LABELS, reduction="none", **given)
    assert rows[3] == 0
    np.testing.assert_allclose(loss(LOGITS, LABELS, **given), rows.sum() / divisor, rtol=1e-14)


def test_numbers_of_keras(library: Any) -> None:
    """keras/src/losses/losses_test.py: DiceTest.test_binary_segmentation, TverskyTest.test_binary_segmentation_custom_coefficients,
    CategoricalGeneralizedCrossEntropyTest.test_basic_correctness_for_binary, HingeTest and SquaredHingeTest.test_unweighted."""
    p = np.array([[0.0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1]]).reshape(1, 16)
    t = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]).reshape(1, 16)
    assert abs(library.dice_loss(p, t, smooth=1e-7) - 0.77777773) < 1e-6
    assert abs(library.tversky_loss(p, t, alpha=0.2, beta=0.8, smooth=1e-7) - 0.76190472) < 1e-6
    classes = np.log([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6]])
    assert abs(library.generalized_cross_entropy(classes, np.array([0, 1, 0, 1]), q=0.5) - 0.3598597219915209) < 1e-6
    score, label = np.array([[0.6, 0.4], [0.4, 0.6]]), np.array([[-1.0, 1], [-1, -1]])
    np.testing.assert_allclose(library.hinge_loss(score, label, reduction="none").mean(-1), [1.1, 1.5], atol=1e-6)
    np.testing.assert_allclose(library.squared_hinge_loss(score, label, reduction="none").mean(-1), [1.46, 2.26], atol=1e-6)


def test_numbers_of_tensorflow(library: Any) -> None:
    """tensorflow/python/kernel_tests/nn_ops/losses_test.py: HingeLossTest.testSomeInsideMargin, testSomeMisclassified."""
    assert abs(library.hinge_loss(np.array([-0.7, -1.4, 1.4, 0.6]), np.array([-1.0, -1, 1, 1])) - 0.175) < 1e-9
    assert abs(library.hinge_loss(np.array([1.2, 0.4, -1.0, -1.1]), np.array([1.0, -1, -1, 1])) - 0.875) < 1e-9


def test_distributions_by_hand(library: Any) -> None:
    """Of a fair and a certain coin: total variation 1/2, divergence log 2 at temperature 1, and that of the mixture (3/4, 1/4)."""
    fair, certain = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])
    assert library.total_variation(fair, certain) == 0.5
    assert library.distillation_loss(np.zeros((1, 2)), np.array([[800.0, 0.0]]), temperature=1.0) == pytest.approx(math.log(2), rel=1e-15)
    with np.errstate(divide="ignore"):
        found = library.jensen_shannon(np.log(fair), np.log(certain), reduction="batchmean")
    assert found == pytest.approx((math.log(4 / 3) + math.log(2 / 3) / 2 + math.log(2) / 2) / 2, rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0.0, 4096.0])
def test_a_student_like_its_teacher(dtype: Any, shift: float, library: Any) -> None:
    """Logits that differ in their last digits, by a constant too: the divergence is of second order, and keeps its digits."""
    teacher = np.array([[0.5, -1.25, 3.0, 0.0625]], dtype)
    student = (teacher + np.finfo(dtype).eps * 4 * np.array([[1, -2, 2, 0]]) + shift).astype(dtype)
    student[0, 1] += dtype(2.0**-8)
    value, grads = library.distillation_loss.value_and_grad(student, teacher, temperature=1.0, reduction="none")
    with mpmath.workdps(60):
        p, q = ([mpmath.exp(mpmath.mpf(float(a))) for a in row[0]] for row in (teacher, student))
        p, q = ([a / sum(row) for a in row] for row in (p, q))
        truth = sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))
        slopes = [float(b - a) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(value, [float(truth)], rtol=20 * np.finfo(dtype).eps)
    np.testing.assert_allclose(grads.input[0], slopes, rtol=20 * np.finfo(dtype).eps)


def test_a_mixture_of_nearly_equal_parts(library: Any) -> None:
    """beta (1 - beta) / 2 times the square of the difference, to first order; and 0 where the parts are equal, or one of them is all."""
    t, apart = np.array([-0.5, -3.0, -1e-3, -40.0]), 2.0**-30
    x = t + apart * np.array([1.0, -1, 1, 16])
    found = library.jensen_shannon(x, t, beta=0.25, reduction="none")
    np.testing.assert_allclose(found, 0.25 * 0.75 / 2 * np.exp(t) * (x - t) ** 2, rtol=1e-7)
    for beta in (0.0, 0.25, 1.0):
        assert np.all(library.jensen_shannon(t, t, beta=beta, reduction="none") == 0)
    assert np.all(library.jensen_shannon(np.array([-1.0, -800]), np.array([-900.0, 0]), beta=1.0, reduction="none") == 0)


@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss", "jaccard_loss"])
def test_overlaps(name: str, library: Any) -> None:
    """Nothing is lost for a perfect prediction, or an empty picture that is seen as empty; a gradient is small where it should be."""
    loss = getattr(library, name)
    assert np.all(loss(np.array([[0.0, 1, 1], [0, 0, 0]]), np.array([[0.0, 1, 1], [0, 0, 0]]), reduction="none") == 0)
    nearly = loss(np.array([[1e-17, 1, 1]]), np.array([[0.0, 1, 1]]), smooth=0.0)
    assert nearly == pytest.approx({"jaccard_loss": 0.5e-17}.get(name, 0.25e-17), rel=1e-14)


def test_tversky_weighs_the_two_mistakes(library: Any) -> None:
    p, t = np.array([[1.0, 1, 0]]), np.array([[1.0, 0, 1]])
    assert library.tversky_loss(p, t, alpha=0.25, beta=2.0, smooth=0.0) == pytest.approx(1 - 1 / 3.25, rel=1e-15)
    found = library.tversky_loss.grad(p, t, alpha=0.25, beta=2.0, smooth=0.0).input
    np.testing.assert_allclose(found, [[-(2.25 + 2) / 3.25**2, 0.25 / 3.25**2, -(2.25 + 2) / 3.25**2]], rtol=1e-14)

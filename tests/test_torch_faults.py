"""Faults that PyTorch's own samples miss: each has a test here that sees it, and shows that it would.

A fault is a formula as one might write it by mistake. It agrees with the right one on every sample that PyTorch offers, and not at
the inputs that are tried here. Expected values are PyTorch's in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peercases import cotangent, gradients, problem
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Fault:
    """A mistake in one loss.

    Attributes:
        tensors: inputs at which it shows.
        wrt: the inputs whose gradients are looked at.
        faulty: the loss with the mistake; it returns what reduction="none" gives.
    """

    loss: str
    id: str
    tensors: dict[str, Any]
    faulty: Function
    wrt: tuple[str, ...] = ("input",)
    params: dict[str, Any] = field(default_factory=dict)

    def outcome(self, function: Function, dtype: torch.dtype) -> list[Tensor]:
        """Values and gradients at the inputs, along a fixed cotangent."""
        given = {k: v.to(dtype, copy=True) if v.is_floating_point() else v
                 for k, v in ((k, torch.as_tensor(v)) for k, v in self.tensors.items())}
        leaves = [given[k].requires_grad_() for k in self.wrt]
        value = function(**given, **self.params, reduction="none")
        found = [value.detach(), *gradients(value, leaves, cotangent(value.double()).to(dtype))]
        return [v.double() for v in found]

    def check(self, function: Function, dtype: torch.dtype) -> None:
        """Raise AssertionError if a function is not like PyTorch's here."""
        tolerance = {"rtol": 1e-11, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 3e-6, "atol": 3e-6}
        rounded = {k: torch.as_tensor(v) for k, v in self.tensors.items()}
        exact = Fault(self.loss, self.id, {k: v.to(dtype) if v.is_floating_point() else v for k, v in rounded.items()},
                      self.faulty, self.wrt, self.params)
        expected = exact.outcome(getattr(F, self.loss), torch.float64)
        for number, (found, right) in enumerate(zip(self.outcome(function, dtype), expected, strict=True)):
            wrong = problem(found, right, **tolerance)
            assert not wrong, f"{self.loss}, {('value', *self.wrt)[number]}: {wrong}"


def real(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# The mistakes

def absolute_value_rising_at_0(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    error = input - target
    return torch.where(error >= 0, error, -error)


def unclamped_logarithms(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    return -(target * torch.log(input) + (1 - target) * torch.log1p(-input))


def logarithm_of_sigmoid(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    p = torch.sigmoid(input)
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p))


def masked_where_not_positive(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    return torch.where(target > 0, target * (torch.log(target) - input), torch.zeros_like(input))


def clamp_that_blocks(input: Tensor, target: Tensor, var: Tensor, reduction: str, eps: float = 1e-6) -> Tensor:
    v = var.clamp(min=eps)
    return (torch.log(v) + (input - target) ** 2 / v) / 2


def variance_not_clamped(input: Tensor, target: Tensor, var: Tensor, reduction: str, eps: float = 1e-6) -> Tensor:
    return (torch.log(var) + (input - target) ** 2 / var) / 2


def stirling_from_1(input: Tensor, target: Tensor, reduction: str, full: bool = False) -> Tensor:
    stirling = target * torch.log(target) - target + torch.log(2 * torch.pi * target) / 2
    return torch.exp(input) - target * input + torch.where(target >= 1, stirling, torch.zeros_like(target))


def smoothing_ignored(input: Tensor, target: Tensor, reduction: str, label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(input, target, reduction=reduction)


def smoothing_over_the_others(input: Tensor, target: Tensor, reduction: str, label_smoothing: float = 0.0) -> Tensor:
    classes = input.shape[1]
    one = F.one_hot(target, classes).to(input.dtype)
    soft = (1 - label_smoothing) * one + label_smoothing / (classes - 1) * (1 - one)
    return -(soft * torch.log_softmax(input, 1)).sum(1)


def hinge_blocked_at_the_kink(input: Tensor, target: Tensor, reduction: str, margin: float = 1.0) -> Tensor:
    zero = torch.zeros_like(input)
    hinge = torch.where(margin - input > 0, margin - input, zero)
    return torch.where(target != 1, hinge, zero) + torch.where(target != -1, input, zero)


def norms_clamped_apart(input1: Tensor, input2: Tensor, target: Tensor, reduction: str, margin: float = 0.0) -> Tensor:
    cosine = F.cosine_similarity(input1, input2, dim=-1, eps=1e-8)
    return torch.where(target == 1, 1 - cosine, (cosine - margin).clamp(min=0))


def eps_ignored(anchor: Tensor, positive: Tensor, negative: Tensor, reduction: str, eps: float = 1e-6) -> Tensor:
    return F.triplet_margin_loss(anchor, positive, negative, reduction=reduction)


def p_ignored(anchor: Tensor, positive: Tensor, negative: Tensor, reduction: str, p: float = 2.0) -> Tensor:
    return F.triplet_margin_loss(anchor, positive, negative, reduction=reduction)


def margin_passing_at_the_kink(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    rows = torch.arange(len(target))
    gaps = (1 - input[rows, target][:, None] + input).clamp(min=0)
    return (gaps * (1 - F.one_hot(target, input.shape[1]))).sum(1) / input.shape[1]


def infinity_not_zeroed(log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, reduction: str,
                        zero_infinity: bool = False) -> Tensor:
    return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, reduction=reduction)


LOGITS = real([2.0, -1.0, 0.5], [0.0, 3.0, -2.0])
TRIPLET = {"anchor": real([1.0, 2.0, -0.5]), "positive": real([0.5, 2.5, 0.25]), "negative": real([1.5, 1.0, -1.0])}
VECTORS = ("anchor", "positive", "negative")

FAULTS: tuple[Fault, ...] = (
    Fault("l1_loss", "slope at 0", {"input": real(1.0, 0.0, -2.0), "target": real(1.0, 0.0, 3.0)}, absolute_value_rising_at_0),
    Fault("binary_cross_entropy", "logarithms not clamped",
          {"input": real(0.0, 1.0, 1e-13, 0.3), "target": real(1.0, 0.0, 1.0, 0.7)}, unclamped_logarithms),
    Fault("binary_cross_entropy_with_logits", "logarithm of a sigmoid",
          {"input": real(-1000.0, 1000.0, -50.0, 50.0), "target": real(1.0, 0.0, 1.0, 0.25)}, logarithm_of_sigmoid),
    Fault("kl_div", "masked where the target is not positive",
          {"input": real(-1.0, -float("inf"), -0.5), "target": real(-0.5, 0.0, 0.5)}, masked_where_not_positive),
    Fault("gaussian_nll_loss", "clamp blocks the gradient",
          {"input": real(0.5, 1.0), "target": real(1.0, -1.0), "var": real(1e-7, 0.5)}, clamp_that_blocks, ("input", "var")),
    Fault("gaussian_nll_loss", "eps ignored",
          {"input": real(0.5, 1.0), "target": real(1.0, -1.0), "var": real(0.1, 0.75)}, variance_not_clamped, ("input", "var"),
          {"eps": 0.5}),
    Fault("poisson_nll_loss", "Stirling's formula at 1", {"input": real(0.5, 0.25), "target": real(1.0, 2.0)}, stirling_from_1,
          params={"full": True}),
    Fault("cross_entropy", "label smoothing ignored", {"input": LOGITS, "target": torch.tensor([0, 2])}, smoothing_ignored,
          params={"label_smoothing": 0.25}),
    Fault("cross_entropy", "label smoothing over the other classes", {"input": LOGITS, "target": torch.tensor([0, 2])},
          smoothing_over_the_others, params={"label_smoothing": 0.25}),
    Fault("hinge_embedding_loss", "slope at the margin", {"input": real(1.0, 0.5, 1.0), "target": real(-1.0, -1.0, 1.0)},
          hinge_blocked_at_the_kink),
    Fault("cosine_embedding_loss", "eps of each norm",
          {"input1": real([0.0, 0.0], [3e-6, 4e-6], [1.0, 2.0]), "input2": real([1.0, 2.0], [1e-6, -2e-6], [1.0, 2.5]),
           "target": real(1.0, 1.0, -1.0)}, norms_clamped_apart, ("input1", "input2")),
    Fault("triplet_margin_loss", "eps ignored", TRIPLET, eps_ignored, VECTORS, {"eps": 0.125}),
    Fault("triplet_margin_loss", "p ignored", TRIPLET, p_ignored, VECTORS, {"p": 3.0}),
    Fault("multi_margin_loss", "slope at the margin", {"input": real([1.0, 0.0, 0.5], [0.0, 2.0, 1.0]), "target": torch.tensor([0, 1])},
          margin_passing_at_the_kink),
    Fault("ctc_loss", "zero_infinity ignored",
          {"log_probs": torch.log_softmax(LOGITS, 1)[:, None], "targets": torch.tensor([[1, 1]]), "input_lengths": torch.tensor([2]),
           "target_lengths": torch.tensor([2])}, infinity_not_zeroed, ("log_probs",), {"zero_infinity": True}),
)

IDS = [f"{fault.loss}-{fault.id.replace(' ', '-')}" for fault in FAULTS]
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=IDS)
each_type = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


@each_type
@each_fault
def test_ours_is_without(fault: Fault, dtype: torch.dtype, T: Any) -> None:
    fault.check(getattr(T, fault.loss), dtype)


@each_type
@each_fault
def test_fault_is_seen(fault: Fault, dtype: torch.dtype) -> None:
    """The check goes red for the fault, and not for PyTorch itself."""
    with pytest.raises(AssertionError):
        fault.check(fault.faulty, dtype)
    fault.check(getattr(F, fault.loss), dtype)


def ordinary(v: Tensor) -> Tensor:
    """A tensor of the kind that samples have: no ties, nothing extreme; labels stay labels."""
    if not v.is_floating_point():
        return v
    if bool((v.abs() == 1).all()):
        return v
    return torch.rand(v.shape, generator=torch.Generator().manual_seed(v.numel() + int(v.ndim)), dtype=torch.float64) * 0.8 + 0.1


@each_fault
def test_fault_is_only_seen_there(fault: Fault) -> None:
    """With ordinary numbers and the default parameters the formula with the mistake is right: a slip, not another loss."""
    given = {k: ordinary(torch.as_tensor(v)) for k, v in fault.tensors.items()}
    given = {k: v * (1 + 0.01 * place) if v.is_floating_point() and bool((v.abs() != 1).any()) else v
             for place, (k, v) in enumerate(given.items())}
    Fault(fault.loss, fault.id, given, fault.faulty, fault.wrt).check(fault.faulty, torch.float32)


def test_soft_margin_does_not_overflow(T: Any) -> None:
    """PyTorch evaluates log(1 + exp(-t x)) as it stands; ours is t x where that overflows, and its slope t."""
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([-1000.0, -89.0, 1000.0, 0.0], dtype=dtype, requires_grad=True)
        value = T.soft_margin_loss(x, torch.ones(4, dtype=dtype), reduction="none")
        assert not problem(value.detach(), torch.tensor([1000.0, 89.0, 0.0, 0.6931471805599453], dtype=dtype))
        slope, = torch.autograd.grad(value.sum(), x)
        assert not problem(slope, torch.tensor([-1.0, -1.0, 0.0, -0.5], dtype=dtype))


def test_negative_smoothing_is_refused(T: Any) -> None:
    """PyTorch ignores it without a word."""
    with pytest.raises((ValueError, RuntimeError)):
        T.cross_entropy(LOGITS, torch.tensor([0, 2]), label_smoothing=-0.1)


def test_mean_of_no_weight_is_not_a_number(T: Any) -> None:
    """All labels ignored, or all weights 0: NaN, as in PyTorch; the sum is 0, and its gradient too."""
    ignored, chosen = torch.tensor([-100, -100]), torch.tensor([0, 2])
    for arguments in ({"target": ignored}, {"target": chosen, "weight": torch.zeros(3, dtype=torch.float64)}):
        for name in ("cross_entropy", "nll_loss"):
            x = LOGITS.clone().requires_grad_()
            for word in ("mean", "sum", "none"):
                found, expected = (getattr(m, name)(x, **arguments, reduction=word) for m in (T, F))
                assert not problem(found, expected)
            slope, = torch.autograd.grad(getattr(T, name)(x, **arguments, reduction="sum"), x)
            assert not slope.any()

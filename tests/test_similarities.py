"""Losses of matrices of similarities against the formulas of papers and of other people's code, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

Formula = Callable[..., torch.Tensor]


def info_nce(s: torch.Tensor, temperature: float) -> torch.Tensor:
    """The cross-entropy of rows, whose labels are their numbers."""
    return torch.stack([F.cross_entropy(m / temperature, torch.arange(m.shape[-1])) for m in s])


def clip(s: torch.Tensor, temperature: float) -> torch.Tensor:
    """transformers/models/clip/modeling_clip.py: clip_loss."""
    return (info_nce(s, temperature) + info_nce(s.mT, temperature)) / 2


def test_both_ways(T: Any) -> None:
    """The loss of CLIP is the mean of that of the matrix and of its transpose."""
    s = torch.tensor(np.random.default_rng(3).normal(size=(2, 5, 5)))
    both = (T.info_nce_loss(s, temperature=0.07, reduction="none") + T.info_nce_loss(s.mT, temperature=0.07, reduction="none")) / 2
    torch.testing.assert_close(both, clip(s, 0.07), rtol=1e-12, atol=1e-13)


def sup_con(s: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """github.com/HobbitLong/SupContrast, losses.py, with one view and without its factor temperature / base_temperature."""
    logits = s / temperature
    logits = logits - logits.amax(-1, keepdim=True).detach()
    others = 1 - torch.eye(s.shape[-1], dtype=s.dtype)
    mask = (labels[..., None, :] == labels[..., None]).to(s.dtype) * others
    log_prob = logits - torch.log((torch.exp(logits) * others).sum(-1, keepdim=True))
    pairs = mask.sum(-1)
    return -((mask * log_prob).sum(-1) / torch.where(pairs < 1e-6, 1.0, pairs)).mean(-1)


FORMULAS: list[tuple[str, Formula, bool, dict[str, float]]] = [
    ("info_nce_loss", info_nce, False, {"temperature": 0.1}),
    ("info_nce_loss", info_nce, False, {"temperature": 1.5}),
    ("supervised_contrastive_loss", sup_con, True, {"temperature": 0.1}),
    ("supervised_contrastive_loss", sup_con, True, {"temperature": 0.7}),
]


@pytest.mark.parametrize(("name", "formula", "labelled", "params"), FORMULAS)
def test_formula(name: str, formula: Formula, labelled: bool, params: dict[str, float], T: Any) -> None:
    """Value, gradient and its derivative along a direction, of a batch of matrices; labels are any integers, some alone."""
    rng = np.random.default_rng(7)
    s = torch.tensor(rng.normal(size=(3, 6, 6)) * 0.3, requires_grad=True)
    given = [torch.tensor(rng.choice([-5, 0, 9, 10**12], (3, 6)))] if labelled else []
    way = torch.tensor(rng.normal(size=s.shape))
    results = []
    for value in (getattr(T, name)(s, *given, **params, reduction="none"), formula(s, *given, **params)):
        grad, = torch.autograd.grad(value.sum(), s, create_graph=True)
        results.append((value, grad, torch.autograd.grad((grad * way).sum(), s)[0]))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_one_matrix_needs_no_batch(library: Any, T: Any) -> None:
    s = np.array([[3.0, 1.0], [0.5, 2.0]])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1.5))) / 2
    assert library.info_nce_loss(s, temperature=1.0) == pytest.approx(expected, rel=1e-15)
    assert T.info_nce_loss(torch.tensor(s), temperature=1.0).item() == pytest.approx(expected, rel=1e-15)


def test_a_matrix_must_be_square(library: Any) -> None:
    with pytest.raises(ValueError, match="'pairs' has the length"):
        library.info_nce_loss(np.zeros((3, 4)))


def test_a_label_that_no_other_has_counts_0(library: Any) -> None:
    s = np.random.default_rng(1).normal(size=(4, 4))
    value, grad = library.supervised_contrastive_loss.value_and_grad(s, np.arange(4))
    assert value == 0 and not grad.similarity.any()
    value, grad = library.supervised_contrastive_loss.value_and_grad(s, np.array([1, 2, 3, 1]))
    assert value > 0 and not grad.similarity[1:3].any() and not np.diagonal(grad.similarity).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certain_pairs_keep_their_tails(dtype: Any, library: Any) -> None:
    """Far apart, loss and gradient are those of the nearest wrong pair, exp(-gap / temperature), also below the digits of 1."""
    s = np.array([[4.0, 0.0], [-1.0, 4.0]], dtype)
    t = dtype(0.125)
    value, grad = library.info_nce_loss.value_and_grad(s, temperature=0.125)
    tails = [math.exp(-32), math.exp(-40)]
    np.testing.assert_allclose(value, sum(tails) / 2, rtol=3e-7)
    np.testing.assert_allclose(grad.similarity, np.array([[-tails[0], tails[0]], [tails[1], -tails[1]]]) / 2 / t, rtol=3e-7)

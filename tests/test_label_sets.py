"""Sets of labels: what users give is counted; duplicates, ends and ranges as PyTorch has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import library as compiled

from losscomp.check import check
from losscomp.language import Eq, If, Loss, Sum, axis, labels, tensor
from losscomp.oracle import exact
from losscomp.oracle.evaluate import counted

SETS = np.array([[2, 0, -1, 1], [-1, 0, 0, 0], [3, 3, 1, -1], [0, 1, 2, 3]])
COUNTS = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 2], [1, 1, 1, 1]])
X = np.array([[0.1, -0.4, 0.8, 0.3], [1.0, 2.0, 3.0, 4.0], [0.5, 0.2, -1.0, 0.7], [0.0, 0.1, 0.2, 0.3]])


def by_hand(x: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """The multi-label margin loss as its definition in words has it."""
    found = []
    for row, given in zip(x, sets.tolist(), strict=True):
        chosen = given[:given.index(-1)] if -1 in given else given
        pairs = [max(0.0, 1 - (row[j] - row[i])) for j in chosen for i in range(len(row)) if i not in chosen]
        found.append(sum(pairs) / len(row))
    return np.array(found)


def test_the_oracle_counts() -> None:
    assert (counted(SETS, -1) == COUNTS).all()


def test_values(library: Any) -> None:
    np.testing.assert_allclose(library.multilabel_margin_loss(X, SETS, reduction="none"), by_hand(X, SETS), rtol=1e-14)


def test_the_example_of_pytorch(library: Any) -> None:
    """torch.nn.MultiLabelMarginLoss's own documentation."""
    x, y = np.array([[0.1, 0.2, 0.4, 0.8]], np.float32), np.array([[3, 0, -1, 1]])
    assert abs(library.multilabel_margin_loss(x, y) - 0.85) < 1e-6


@pytest.mark.parametrize("until", [-1, -7])
def test_the_compiler_counts(until: int, tmp_path: Path) -> None:
    """A loss that reads the counts themselves, on every target."""
    classes = axis("classes")
    s, y = tensor("s", classes), labels("y", into=classes, until=until)
    c = classes.index()
    loss = Loss(Sum(y[c] * s[c] ** 2 + If(Eq(y[c], 0), 1, 0), c), name="probe", doc="A probe.")
    given = np.where(SETS == -1, until, SETS)
    for module in compiled([loss], tmp_path, f"counts{-until}", "-O0").values():
        value, (grad,) = module.probe.value_and_grad(s=X, y=given, reduction="none")
        np.testing.assert_allclose(value, (COUNTS * X**2 + (COUNTS == 0)).sum(1), rtol=1e-14)
        np.testing.assert_allclose(grad, 2 * COUNTS * X, rtol=1e-14)
        with pytest.raises(IndexError, match=rf"y\[1, 2\] is 4, and the axis 'classes' has the positions 0 to 3 \(or {until}, which ends"):
            module.probe(X, np.where((np.arange(4) == 2) & (np.arange(4)[:, None] == 1), 4, given))
    truth = exact(check(loss)[0], {"s": X, "y": given}, reduction="none", upstream=np.ones(4))
    np.testing.assert_allclose(truth.value.high, (COUNTS * X**2 + (COUNTS == 0)).sum(1), rtol=1e-14)


@pytest.mark.parametrize("bad", [-2, 4, 2**40, -2**62])
@pytest.mark.parametrize("place", [0, 3])
def test_labels_out_of_range(bad: int, place: int, library: Any, T: Any) -> None:
    """Also behind the end, as in PyTorch."""
    sets = SETS.copy()
    sets[1, place] = bad
    with pytest.raises(IndexError, match=rf"target\[1, {place}\] is {bad}, and the axis 'classes' has the positions 0 to 3"):
        library.multilabel_margin_loss(X, sets)
    with pytest.raises(RuntimeError, match=rf"target\[1, {place}\] is {bad}"):
        T.multilabel_margin_loss(torch.tensor(X), torch.tensor(sets))
    with pytest.raises((RuntimeError, IndexError)):
        torch.vmap(T.multilabel_margin_loss)(torch.tensor(X), torch.tensor(sets))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (0, 4), (3, 4), (2, 3, 4)])
def test_shapes(shape: tuple[int, ...], library: Any, T: Any) -> None:
    """A number, one sample, none, and more dimensions than PyTorch takes."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=shape), rng.integers(-1, shape[-1] if shape else 1, shape)
    wide = (x.reshape(-1, shape[-1] if shape else 1), y.reshape(-1, shape[-1] if shape else 1))
    value, (grad,) = library.multilabel_margin_loss.value_and_grad(x, y, reduction="none")
    np.testing.assert_allclose(value, by_hand(*wide).reshape(shape[:-1]), rtol=1e-13)
    assert grad.shape == shape
    leaf = torch.tensor(x, requires_grad=True)
    mine = T.multilabel_margin_loss(leaf, torch.tensor(y), reduction="none")
    slope, = torch.autograd.grad(mine.sum(), leaf)
    np.testing.assert_allclose(slope.numpy(), grad, rtol=1e-13)
    if len(shape) < 3:
        assert mine.shape == torch.nn.functional.multilabel_margin_loss(leaf, torch.tensor(y), reduction="none").shape


def test_an_empty_vector_is_an_error(library: Any) -> None:
    with pytest.raises(ValueError, match="empty along 'classes'"):
        library.multilabel_margin_loss(np.zeros((2, 0)), np.zeros((2, 0), int))
    with pytest.raises(ValueError, match="empty along 'classes'"):
        library.multi_margin_loss(np.zeros((2, 0)), np.zeros(2, int))


@pytest.mark.parametrize(("x", "t"), [((), ()), ((5,), ()), ((5,), (1,)), ((1, 5), ()), ((1, 5), (1,)), ((3, 5), (3,)), ((0, 5), (0,))])
def test_vectors_and_their_label(x: tuple[int, ...], t: tuple[int, ...], library: Any, T: Any) -> None:
    """One sample comes with or without a batch, and so does its label; the loss has the shape that PyTorch gives it."""
    scores, label = np.random.default_rng(1).normal(size=x), np.zeros(t, int)
    expected = torch.nn.functional.multi_margin_loss(torch.tensor(scores), torch.tensor(label), reduction="none")
    value, (grad,) = library.multi_margin_loss.value_and_grad(scores, label, reduction="none")
    assert np.shape(value) == tuple(expected.shape) and grad.shape == x
    np.testing.assert_allclose(value, expected.numpy(), rtol=1e-13)
    product, = library.multi_margin_loss.hvp(scores, label, np.ones(x), p=2, reduction="none")
    assert product.shape == x
    leaf = torch.tensor(scores, requires_grad=True)
    torch.testing.assert_close(T.multi_margin_loss(leaf, torch.tensor(label), reduction="none"), expected)
    assert T.multi_margin_loss.hvp(leaf, torch.tensor(label), torch.ones(x, dtype=torch.float64), p=2)[0].shape == x
    assert T.multi_margin_loss.grad(leaf, torch.tensor(label))[0].shape == x


@pytest.mark.parametrize("p", [0, 3, 1.5, float("nan")])
def test_a_power_that_there_is_not(p: float, library: Any, T: Any) -> None:
    for f, array in ((library.multi_margin_loss, np.asarray), (T.multi_margin_loss, torch.tensor)):
        with pytest.raises(ValueError, match=f"p must be 1 or 2, got {p}"):
            f(array(X), array([0, 1, 2, 3]), p=p)

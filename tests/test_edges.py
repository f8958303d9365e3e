"""The edges of the losses: ties, empty and ignored batches, extreme and missing numbers. PyTorch's conventions, or why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

nan, inf = np.nan, np.inf
EPS = 9.999999960041972e-13                                             # 1e-12 in single precision


def both(library: Any, loss: str, *arrays: Any, **how: Any) -> tuple[Any, Any]:
    """Value and gradient by the first input, for one call."""
    value, grads = getattr(library, loss).value_and_grad(*arrays, **how)
    return value, grads[0]


# Ties: value and gradient where two arms meet

TIES = [
    ("l1_loss", ([2.0], [2.0]), {}, 0.0, 0.0),
    ("smooth_l1_loss", ([2.0], [1.0]), {}, 0.5, 1.0),
    ("smooth_l1_loss", ([1.0], [2.0]), {}, 0.5, -1.0),
    ("smooth_l1_loss", ([1.0], [1.0]), {"beta": 0.0}, 0.0, 0.0),
    ("huber_loss", ([3.0], [1.0]), {"delta": 2.0}, 2.0, 2.0),
    ("huber_loss", ([-inf], [1.0]), {"delta": 2.0}, inf, -2.0),
    ("hinge_embedding_loss", ([1.0], [-1.0]), {}, 0.0, -1.0),
    ("hinge_embedding_loss", ([0.3], [0.0]), {}, 1.0, 0.0),              # a target other than 1 and -1: the sum of both arms
    ("hinge_embedding_loss", ([3.0], [0.0]), {}, 3.0, 1.0),
    ("hinge_embedding_loss", ([-3.0], [1.0]), {}, -3.0, 1.0),
    ("margin_ranking_loss", ([1.0], [1.0], [1.0]), {}, 0.0, -1.0),
    ("margin_ranking_loss", ([1.0], [1.0], [2.0]), {}, 0.0, -2.0),
    ("margin_ranking_loss", ([1.0], [1.0], [-1.0]), {}, 0.0, 1.0),
    ("soft_margin_loss", ([5.0], [0.0]), {}, np.log(2), 0.0),
    ("kl_div", ([-1.0], [0.0]), {}, 0.0, 0.0),
    ("kl_div", ([-inf], [0.5]), {}, inf, -0.5),
    ("kl_div", ([-inf], [0.0]), {}, nan, 0.0),
    ("kl_div", ([-1.0], [-0.5]), {}, nan, 0.5),
    ("poisson_nll_loss", ([0.0], [1.0]), {"log_input": False}, 18.420680743952367, -99999999.0),
    ("poisson_nll_loss", ([-1.0], [1.0]), {"log_input": False}, nan, 2.0 + 1e-8),
    ("binary_cross_entropy", ([0.0], [1.0]), {}, 100.0, -1 / EPS),
    ("binary_cross_entropy", ([1.0], [0.0]), {}, 100.0, 1 / EPS),
    ("binary_cross_entropy", ([0.0], [0.0]), {}, 0.0, 0.0),
    ("binary_cross_entropy", ([1.0], [1.0]), {}, 0.0, 0.0),
    ("binary_cross_entropy_with_logits", ([1000.0], [1.0]), {}, 0.0, 0.0),
    ("binary_cross_entropy_with_logits", ([1000.0], [0.0]), {}, 1000.0, 1.0),
    ("binary_cross_entropy_with_logits", ([-1000.0], [1.0]), {}, 1000.0, -1.0),
    ("binary_cross_entropy_with_logits", ([-1000.0], [0.0]), {}, 0.0, 0.0),
    ("binary_cross_entropy_with_logits", ([1.0], [2.0]), {}, np.log1p(np.e) - 2.0, 1 / (1 + np.exp(-1)) - 2.0),
    ("soft_margin_loss", ([1000.0], [1.0]), {}, 0.0, 0.0),
    ("soft_margin_loss", ([-1000.0], [1.0]), {}, 1000.0, -1.0),          # PyTorch overflows to inf and NaN; ours is exact
    ("soft_margin_loss", ([1000.0], [-1.0]), {}, 1000.0, 1.0),
    ("multilabel_soft_margin_loss", ([1000.0, -1000.0], [0.0, 0.0]), {}, 500.0, [0.5, 0.0]),
    ("cross_entropy", ([1000.0, -1000.0], 1), {}, 2000.0, [1.0, -1.0]),
    ("cross_entropy", ([0.0, -inf], 1), {}, inf, [1.0, -1.0]),
    ("nll_loss", ([nan, -1.0], 1), {}, 1.0, [0.0, -1.0]),                # what is not selected is not read
    ("gaussian_nll_loss", ([1.0], [0.0], [1.0]), {}, 0.5, 1.0),
    ("cosine_embedding_loss", ([0.0, 0.0], [0.0, 0.0], 1.0), {}, 1.0, [0.0, 0.0]),
    ("cosine_embedding_loss", ([0.0, 0.0], [3.0, 4.0], 1.0), {}, 1.0, [-0.6e6, -0.8e6]),
    ("cosine_embedding_loss", ([1.0, 2.0], [3.0, 4.0], 0.0), {}, 0.0, [0.0, 0.0]),
    ("cosine_embedding_loss", ([1.0, 0.0], [0.0, 1.0], -1.0), {}, 0.0, [0.0, 1.0]),
    ("triplet_margin_loss", ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]), {"eps": 0.0}, 1.0, [0.0, 0.0]),
    ("triplet_margin_loss", ([0.0], [0.0], [1.0]), {"eps": 0.0}, 0.0, [1.0]),
]


@pytest.mark.parametrize(("loss", "arrays", "how", "value", "gradient"), TIES, ids=[f"{t[0]}-{i}" for i, t in enumerate(TIES)])
def test_ties(loss: str, arrays: Any, how: Any, value: Any, gradient: Any, library: Any) -> None:
    found, grads = both(library, loss, *map(np.asarray, arrays), **how)
    np.testing.assert_allclose(found, value, rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(grads, np.broadcast_to(gradient, np.shape(grads)), rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize(("loss", "how"), [("smooth_l1_loss", {}), ("huber_loss", {"delta": 1.0}), ("l1_loss", {})])
def test_second_derivative_at_a_kink(loss: str, how: Any, library: Any) -> None:
    """At the kink the linear arm counts, and no delta function is left over."""
    x = np.array([1.0, 2.0, 0.0])
    found = getattr(library, loss).hessian_diag(x, np.array([0.0, 0.0, 1.0]), reduction="sum", **how)[0]
    np.testing.assert_array_equal(found, 0)


def test_bce_is_stated(library: Any) -> None:
    """The second derivative at 0 with the target 1 is that of PyTorch: 1e24. That by target is ours: at most 100 in size."""
    second = library.binary_cross_entropy.hessian_diag([0.0], [1.0])[0]
    np.testing.assert_allclose(second, [1e24], rtol=1e-6)
    by_target = library.binary_cross_entropy.grad([0.0, 1.0], [0.5, 0.5], wrt="target", reduction="sum")[0]
    np.testing.assert_array_equal(by_target, [100.0, -100.0])


@pytest.mark.parametrize("var", [0.0, 1e-7, 1e-6])
def test_gaussian_straight_through(var: float, library: Any) -> None:
    """Below eps the gradient is that at eps, not 0."""
    grads = library.gaussian_nll_loss.grad([1.0], [0.0], [var], wrt=("input", "var"))
    np.testing.assert_allclose(grads.var, [-499999500000.0], rtol=1e-12)
    np.testing.assert_allclose(grads.input, [1e6], rtol=1e-12)


def test_poisson_stirling(library: Any) -> None:
    """Only above 1; and by target the derivative at 0 is finite, where PyTorch has NaN."""
    t = np.array([0.0, 1.0, 2.0])
    added = library.poisson_nll_loss([0.0] * 3, t, full=True, reduction="none") - 1.0
    np.testing.assert_allclose(added, [0.0, 0.0, 2 * np.log(2) - 2 + np.log(4 * np.pi) / 2], rtol=1e-14)
    slope = library.poisson_nll_loss.grad([0.5] * 3, t, full=True, wrt="target", reduction="sum")[0]
    np.testing.assert_allclose(slope, [-0.5, -0.5, -0.5 + np.log(2) + 0.25], rtol=1e-14)


def test_kl_div_by_target_at_zero(library: Any) -> None:
    """-inf, the limit, where PyTorch has NaN."""
    np.testing.assert_array_equal(library.kl_div.grad([-1.0], [0.0], wrt="target")[0], [-inf])


def test_triplet_swap_tie(library: Any) -> None:
    """Where both distances are equal, each gets half the gradient."""
    a, p, n = np.array([[0.0]]), np.array([[1.0]]), np.array([[0.5]])
    grads = library.triplet_margin_loss.grad(a, p, n, swap=True, eps=0.0, wrt=("anchor", "positive", "negative"))
    np.testing.assert_allclose(np.ravel(grads), [-0.5, 0.5, 0.0], atol=1e-15)


# Nothing to average over

def test_all_ignored(library: Any) -> None:
    x, t = np.zeros((3, 4)), np.full(3, -100)
    for loss in ("nll_loss", "cross_entropy"):
        value, grad = both(library, loss, x, t)
        assert np.isnan(value)
        np.testing.assert_array_equal(grad, 0)
        value, grad = both(library, loss, x, t, reduction="sum")
        assert value == 0
        np.testing.assert_array_equal(grad, 0)
        np.testing.assert_array_equal(getattr(library, loss)(x, t, reduction="none"), 0)


def test_ignored_rows_are_not_read(library: Any) -> None:
    """Not even a NaN in them counts."""
    x = np.array([[nan, inf], [0.0, 0.0]])
    for loss, expected in (("nll_loss", 0.0), ("cross_entropy", np.log(2))):
        value, grad = both(library, loss, x, np.array([-100, 1]))
        assert value == pytest.approx(expected)
        np.testing.assert_array_equal(grad[0], 0)


@pytest.mark.parametrize("loss", ["nll_loss", "cross_entropy"])
def test_class_weights_all_zero(loss: str, library: Any) -> None:
    value, grad = both(library, loss, np.ones((2, 3)), np.array([0, 1]), np.zeros(3))
    assert np.isnan(value)
    assert np.isnan(grad).any()
    assert getattr(library, loss)(np.ones((2, 3)), np.array([0, 1]), np.zeros(3), reduction="sum") == 0


@pytest.mark.parametrize("loss", ["l1_loss", "mse_loss"])
def test_weights_all_zero(loss: str, library: Any) -> None:
    assert np.isnan(getattr(library, loss)([1.0], [0.0], weight=[0.0]))
    assert library.huber_loss([1.0], [0.0], weight=[0.0]) == 0       # divides by the number of elements


# Extreme logits

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_is_exact(dtype: Any, library: Any) -> None:
    """A confident prediction keeps its loss, where PyTorch has 0 in float32; gradients add up to 0."""
    value, grad = both(library, "cross_entropy", np.array([20, 0], dtype), np.array(0))
    assert value == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-6)
    assert value == pytest.approx(2.0611536e-9, rel=1e-6)
    assert grad.sum() == 0
    np.testing.assert_allclose(grad, [-2.0611536e-9, 2.0611536e-9], rtol=1e-6)
    three = library.cross_entropy(np.array([20, 0, 0], dtype), np.array(0))
    assert three == pytest.approx(4.1223072e-9, rel=1e-6)
    assert library.cross_entropy(np.array([12, 3, 2], dtype), np.array(0)) == pytest.approx(
        np.log1p(np.exp(-9.0) + np.exp(-10.0)), rel=1e-6)


def test_cross_entropy_gradients_sum_to_zero(library: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 6)) * 100
    grad = library.cross_entropy.grad(x, rng.integers(0, 6, 50), reduction="sum")[0]
    np.testing.assert_allclose(grad.sum(1), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_losses_are_exact(dtype: Any, library: Any) -> None:
    x = np.array([30.0], dtype)
    for found in (library.binary_cross_entropy_with_logits(x, np.ones(1, dtype)), library.soft_margin_loss(x, np.ones(1, dtype)),
                  library.multilabel_soft_margin_loss(x, np.ones(1, dtype))):
        assert found == pytest.approx(np.log1p(np.exp(-30.0)), rel=1e-6)


def test_identical_vectors(library: Any) -> None:
    assert 0 <= abs(library.cosine_embedding_loss([3.0, 4.0], [3.0, 4.0], 1.0)) < 1e-12


# Missing numbers

MATRIX = {"input": np.full((3, 4), 0.5), "target": np.full((3, 4), 0.25)}
PLAIN: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    **dict.fromkeys((
        "binary_cross_entropy", "binary_cross_entropy_with_logits", "hinge_embedding_loss", "kl_div", "poisson_nll_loss",
        "multilabel_soft_margin_loss", "soft_margin_loss", "mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss"), (MATRIX, ("input",))),
    "gaussian_nll_loss": (MATRIX | {"var": np.ones((3, 4))}, ("input", "var")),
    "cross_entropy": ({"input": np.full((3, 4), 0.5), "target": np.array([0, 1, 2])}, ("input",)),
    "nll_loss": ({"input": np.full((3, 4), 0.5), "target": np.array([0, 1, 2])}, ("input",)),
    "margin_ranking_loss": ({"input1": np.zeros((3, 4)), "input2": np.ones((3, 4)), "target": np.ones((3, 4))},
                            ("input1", "input2")),
    "cosine_embedding_loss": ({"input1": np.full((3, 4), 0.5), "input2": np.ones((3, 4)), "target": np.ones(3)},
                              ("input1", "input2")),
    "triplet_margin_loss": ({k: np.full((3, 4), v) for k, v in (("anchor", 0.5), ("positive", 0.1), ("negative", 0.7))},
                            ("anchor", "positive", "negative")),
}
NANS = [(loss, name) for loss, (given, _) in PLAIN.items() for name, v in given.items() if v.dtype.kind == "f"]
# A sign is compared with 1 and -1, and NaN is neither.
COMPARED = {("hinge_embedding_loss", "target"), ("cosine_embedding_loss", "target")}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("loss", "name"), NANS)
def test_nan_in_nan_out(loss: str, name: str, dtype: Any, library: Any) -> None:
    """NaN in one sample: its value and gradient are NaN, and the others are as if nothing had happened."""
    given, wrt = PLAIN[loss]
    given = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in given.items()}
    function = getattr(library, loss)
    clean = function.value_and_grad(**given, reduction="none", wrt=wrt)
    place: tuple[int, ...] = (1, 1) if given[name].ndim == 2 else (1,)
    broken = {k: v.copy() for k, v in given.items()}
    broken[name][place] = nan
    value, grads = function.value_and_grad(**broken, reduction="none", wrt=wrt)
    hit = np.zeros(value.shape, bool)
    hit[place[:value.ndim]] = True
    np.testing.assert_array_equal(value[~hit], clean[0][~hit])
    for found, before in zip(grads, clean[1], strict=True):
        np.testing.assert_array_equal(found[~hit], before[~hit])
    if (loss, name) in COMPARED:
        assert not np.isnan(value).any()
        return
    assert np.isnan(value[hit]).all()
    assert np.isnan(function(**broken)) and np.isnan(function(**broken, reduction="sum"))
    # PyTorch too has gradients that do not read every input: kl_div's is -target, for example.
    constant = {("kl_div", "input"), ("nll_loss", "input"), ("l1_loss", "input"), ("l1_loss", "target")}
    if (loss, name) not in constant:
        assert any(np.isnan(found[hit]).any() for found in grads)


# Empty batches

EMPTY = [(loss, given) for loss, (given, _) in PLAIN.items()]


@pytest.mark.parametrize(("loss", "given"), EMPTY, ids=[e[0] for e in EMPTY])
def test_empty(loss: str, given: Any, library: Any) -> None:
    """The mean of nothing is NaN, its sum 0."""
    none = {k: v[:0] for k, v in given.items()}
    function = getattr(library, loss)
    assert np.isnan(function(**none))
    assert function(**none, reduction="sum") == 0
    assert function(**none, reduction="none").size == 0
    value, grads = function.value_and_grad(**none)
    assert np.isnan(value) and all(g.shape == none[k].shape for k, g in zip(grads._fields, grads, strict=True))


def test_empty_batchmean(library: Any) -> None:
    assert np.isnan(library.kl_div(np.zeros((0, 2)), np.zeros((0, 2)), reduction="batchmean"))

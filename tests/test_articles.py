"""The numbers that published articles print for these losses: each is reproduced, or there is a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ENTRIES: dict[str, Any] = {e["id"]: e for e in json.loads((Path(__file__).parent / "articles.json").read_text())}


def entry(key: str, dtype: Any = np.float64) -> tuple[Any, Any, Any]:
    """Input, target and the printed numbers."""
    found = ENTRIES[key]
    inputs = found["inputs"]
    return (np.array(inputs.get("input", inputs.get("logits")), dtype), np.array(inputs.get("target", inputs.get("labels")), dtype),
            found["printed"])


@pytest.mark.parametrize("key", ["S01", "S02"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_poisson_mean(key: str, dtype: Any, library: Any) -> None:
    x, t, printed = entry(key, dtype)
    assert library.poisson_nll_loss(x, t, full=True) == pytest.approx(printed, rel=1e-6)


def test_poisson_each(library: Any) -> None:
    """Targets 0 and 1, where Stirling's approximation is not added, and larger ones."""
    x, t, printed = entry("S03", np.float32)
    np.testing.assert_allclose(library.poisson_nll_loss(x, t, full=True, reduction="none"), printed, atol=5e-5)


@pytest.mark.parametrize(("key", "shape"), [("S04", (5, 2)), ("S05", (5, 1)), ("S06", (5,))])
def test_gaussian_mean(key: str, shape: tuple[int, ...], library: Any) -> None:
    """Printed with an older PyTorch, which summed over all dimensions but the first before it took the mean: twice today's."""
    x, t, printed = entry(key, np.float32)
    var = np.ones(shape, np.float32)
    each = library.gaussian_nll_loss(x, t, var, reduction="none")
    assert each.sum(1).mean() == pytest.approx(printed, rel=1e-6)
    assert library.gaussian_nll_loss(x, t, var) == pytest.approx(printed / 2, rel=1e-6)


def test_gaussian_each(library: Any) -> None:
    """Printed with the same older PyTorch: one number a row, where today's has one for each element."""
    x, t, printed = entry("S07", np.float32)
    each = library.gaussian_nll_loss(x, t, np.ones(5, np.float32), reduction="none")
    assert each.shape == (5, 2)
    np.testing.assert_allclose(each.sum(1), printed, atol=5e-5)


@pytest.mark.parametrize(("key", "loss"), [("S08", "l1_loss"), ("S09", "smooth_l1_loss"), ("S10", "mse_loss")])
def test_regression(key: str, loss: str, library: Any) -> None:
    x, t, printed = entry(key)
    assert getattr(library, loss)(x, t) == printed
    if loss == "smooth_l1_loss":                    # half of these errors are exactly beta, and huber_loss(1) is the same loss
        assert library.huber_loss(x, t) == printed


@pytest.mark.parametrize("key", ["S11", "S12"])
def test_cross_entropy(key: str, library: Any) -> None:
    x, targets, printed = entry(key)
    found = [library.cross_entropy(x, t.astype(int)) for t in targets]
    np.testing.assert_allclose(found, printed, atol=5e-5)
    one_hot = [library.cross_entropy(x, np.eye(3)[t.astype(int)]) for t in targets]
    np.testing.assert_allclose(one_hot, found, rtol=1e-15)


def test_cross_entropy_one_hot(library: Any) -> None:
    x, t, printed = entry("S13")
    assert library.cross_entropy(x, t.astype(int)) == pytest.approx(printed, rel=4e-16)
    assert library.cross_entropy(x, np.eye(3)[t.astype(int)]) == pytest.approx(printed, rel=4e-16)


def test_bce_outside_its_domain(library: Any) -> None:
    """Printed before targets were checked: the formula with 1e-12 inside the logarithms, for targets 2 and 3. It is refused."""
    x, t, printed = entry("S14")
    with pytest.raises(RuntimeError, match=r"binary_cross_entropy: target\[1, 0\] is 2.0; all elements of target should be "
                                           r"between 0 and 1"):
        library.binary_cross_entropy(x, t)
    old = -np.mean(t * np.log(x + 1e-12) + (1 - t) * np.log(1 - x + 1e-12))
    assert old == pytest.approx(printed, abs=5e-5)


def test_nll_of_matrix_targets(library: Any) -> None:
    """An error then, with another message, and now; cross_entropy reads the same target as probabilities."""
    x, t, printed = entry("S15")
    assert "error" in printed
    with pytest.raises(RuntimeError, match="integers"):
        library.nll_loss(x, t)
    with pytest.raises(RuntimeError, match="target"):
        library.nll_loss(x, t.astype(int))
    assert library.cross_entropy(x, t) == pytest.approx(2.0794, abs=5e-5)


def test_bce_with_logits(library: Any) -> None:
    x, t, printed = entry("S16")
    with pytest.warns(UserWarning, match="deprecated"):
        found = library.binary_cross_entropy_with_logits(x, t, reduce=False)
    np.testing.assert_allclose(found, printed, rtol=3e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_cross_entropy(dtype: Any, library: Any) -> None:
    x, t, printed = entry("S17", dtype)
    np.testing.assert_allclose(library.binary_cross_entropy_with_logits(x, t, reduction="none"), printed, rtol=1e-6)


def test_row_means(library: Any) -> None:
    """Row means of the one loss are each sample of the other."""
    x, t, printed = entry("S18")
    np.testing.assert_allclose(library.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1), printed, rtol=1e-6)
    np.testing.assert_allclose(library.multilabel_soft_margin_loss(x, t, reduction="none"), printed, rtol=1e-6)


def test_swapped_arguments(library: Any) -> None:
    """Printed by a call with its arguments swapped, so the logits were the targets: they lie outside the domain and are refused.

    In the right order, and clipped as Keras does, the numbers are these.
    """
    x, t, printed = entry("S19", np.float32)
    probabilities = np.clip(t, np.float32(1e-7), np.float32(1 - 1e-7))
    with pytest.raises(ValueError, match=r"target\[0, 0\] is 12.0"):
        library.binary_cross_entropy(probabilities, x)
    formula = -(x * np.log(probabilities) + (1 - x) * np.log1p(-probabilities)).mean(1)
    np.testing.assert_allclose(formula, printed, rtol=1e-5)
    clipped = np.clip(x, np.float32(1e-7), np.float32(1 - 1e-7))
    right = library.binary_cross_entropy(clipped, t, reduction="none").mean(1)
    np.testing.assert_allclose(right, [10.628, 10.628, 10.628, 5.314, 10.628], rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_cross_entropy(dtype: Any, library: Any) -> None:
    """The printed digits of element 0 are 5.6e-5 off, for float32 as it was computed there; ours is near the true value."""
    x, t, printed = entry("S20", dtype)
    found = library.cross_entropy(x, t, reduction="none")
    np.testing.assert_allclose(found, printed, rtol=1e-4)
    np.testing.assert_allclose(found[0], np.log1p(np.exp(-9.0) + np.exp(-10.0)), rtol=1e-6)


def test_every_number_is_tested() -> None:
    """No entry of the file is left out."""
    text = Path(__file__).read_text()
    assert [key for key in ENTRIES if f'"{key}"' not in text] == []

"""Every loss of the library against PyTorch: value, gradient and second-order product, with all options and shapes."""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

N, C, D = 7, 5, 4
Array = np.ndarray[Any, Any]
Maker = Callable[[np.random.Generator], dict[str, Array]]

# PyTorch warns of broadcasting, of 'mean' in kl_div, and of deprecated arguments.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass
class Case:
    """One call: what makes its arrays, its parameters, and how PyTorch may differ.

    Attributes:
        differentiable: the inputs whose derivatives PyTorch has too.
        second: the tolerance of second-order products in float64, where it is not that of everything else.
    """

    loss: str
    id: str
    make: Maker
    params: dict[str, Any] = field(default_factory=dict)
    differentiable: tuple[str, ...] = ("input",)
    second: float = 1e-11
    reductions: tuple[str, ...] = ("none", "mean", "sum")


def normal(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: rng.normal(size=shape)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Callable[[np.random.Generator], Array]:
    return lambda rng: rng.uniform(low, high, size=shape)


def signs(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: np.where(rng.random(shape) < 0.5, -1.0, 1.0)


def bits(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: (rng.random(shape) < 0.5).astype(float)


def counts(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: rng.poisson(2.0, shape).astype(float)


def labels(*shape: int, classes: int = C, ignored: int | None = None) -> Callable[[np.random.Generator], Array]:
    def make(rng: np.random.Generator) -> Array:
        found = np.asarray(rng.integers(0, classes, shape))
        if ignored is not None and found.size > 1:
            found.flat[0] = ignored
        return found
    return make


def arrays(**makers: Callable[[np.random.Generator], Array]) -> Maker:
    return lambda rng: {name: make(rng) for name, make in makers.items()}


SHAPES: dict[str, tuple[int, ...]] = {"matrix": (N, C), "empty": (0, C), "one": (1,), "scalar": (), "deep": (2, 3, 2, 2)}


def pointwise() -> Iterator[Case]:
    """Losses of one element at a time: all shapes, all options."""
    for word, s in SHAPES.items():
        x, t, w = normal(*s), normal(*s), uniform(*s)
        for loss in ("l1_loss", "mse_loss", "huber_loss", "smooth_l1_loss"):
            yield Case(loss, word, arrays(input=x, target=t), {}, ("input", "target"))
        for loss in ("l1_loss", "mse_loss"):
            yield Case(loss, f"{word}-weight", arrays(input=x, target=t, weight=w), {}, ("input", "target", "weight"))
        yield Case("huber_loss", f"{word}-weight", arrays(input=x, target=t, weight=w), {}, ("input", "target", "weight"))
        for beta in (0.0, 0.3, 2.0):
            yield Case("smooth_l1_loss", f"{word}-beta{beta}", arrays(input=x, target=t), {"beta": beta}, ("input", "target"))
        for delta in (0.3, 2.0):
            yield Case("huber_loss", f"{word}-delta{delta}", arrays(input=x, target=t), {"delta": delta}, ("input", "target"))
        # The derivatives of PyTorch have a floor in their denominators, and it adds it to p(1-p) in the second one where we
        # take the larger of the two: 1e-12 / p(1-p) relative, times a curvature of 1/p^2.
        p, y = uniform(*s, low=0.03, high=0.97), uniform(*s, low=0.05, high=0.95)
        yield Case("binary_cross_entropy", word, arrays(input=p, target=y), {}, ("input", "target"), second=1e-6)
        yield Case("binary_cross_entropy", f"{word}-weight", arrays(input=p, target=y, weight=w), {}, ("input", "target"),
                   second=1e-6)
        loss = "binary_cross_entropy_with_logits"
        tall: dict[str, Any] = {"weight": w, "pos_weight": uniform(*s[-1:])}
        for given in ((), ("weight",), ("pos_weight",), ("weight", "pos_weight")):
            yield Case(loss, "-".join((word, *given)), arrays(input=x, target=y, **{k: tall[k] for k in given}), {},
                       ("input", "target"))
        yield Case("soft_margin_loss", word, arrays(input=x, target=signs(*s)))
        yield Case("hinge_embedding_loss", word, arrays(input=x, target=signs(*s)), {"margin": 0.5})
        yield Case("margin_ranking_loss", word, arrays(input1=x, input2=t, target=signs(*s)), {"margin": 0.3},
                   ("input1", "input2"))
        for log_input, full in itertools.product((False, True), repeat=2):
            rate = x if log_input else uniform(*s, low=0.2, high=4.0)
            options: dict[str, Any] = {"log_input": log_input, "full": full}
            yield Case("poisson_nll_loss", f"{word}-log{log_input:d}-full{full:d}", arrays(input=rate, target=counts(*s)), options)
            yield Case("poisson_nll_loss", f"{word}-log{log_input:d}-full{full:d}-eps", arrays(input=rate, target=counts(*s)),
                       options | {"eps": 0.1})
        for full, eps in ((False, 1e-6), (True, 1e-6), (True, 0.5)):
            yield Case("gaussian_nll_loss", f"{word}-full{full:d}-eps{eps}",
                       arrays(input=x, target=t, var=uniform(*s, low=0.2, high=2.0)), {"full": full, "eps": eps},
                       ("input", "target", "var"))
        words = ("none", "mean", "sum", "batchmean") if s and s[0] else ("none", "mean", "sum")
        yield Case("kl_div", word, arrays(input=x, target=y), {}, ("input", "target"), reductions=words)
        yield Case("kl_div", f"{word}-log_target", arrays(input=x, target=t), {"log_target": True}, ("input", "target"),
                   reductions=words)
    for word, s in (("same", (N, C)), ("less", (N,)), ("one", (N, 1)), ("first", (1, C))):
        yield Case("gaussian_nll_loss", f"var-{word}", arrays(input=normal(N, C), target=normal(N, C),
                                                             var=uniform(*s, low=0.2, high=2.0)), {}, ("input", "var"))


def broadcast() -> Iterator[Case]:
    """Shapes that differ: gradients are summed back."""
    for word, s, t in (("row", (N, C), (C,)), ("column", (N, C), (N, 1)), ("outer", (N, 1), (1, C)), ("scalar", (), (N, C))):
        x, y = normal(*s), normal(*t)
        for loss in ("l1_loss", "mse_loss", "huber_loss", "smooth_l1_loss"):
            yield Case(loss, f"broadcast-{word}", arrays(input=x, target=y), {}, ("input", "target"))
        yield Case("hinge_embedding_loss", f"broadcast-{word}", arrays(input=x, target=signs(*t)))
        yield Case("poisson_nll_loss", f"broadcast-{word}", arrays(input=x, target=uniform(*t, low=2.0, high=5.0)))
        yield Case("kl_div", f"broadcast-{word}", arrays(input=x, target=uniform(*t, low=0.1)), {}, ("input", "target"))
        if len(s) == len(t):
            yield Case("margin_ranking_loss", f"broadcast-{word}", arrays(input1=x, input2=y, target=signs(N, C)), {},
                       ("input1", "input2"))
    yield Case("gaussian_nll_loss", "broadcast-target", arrays(input=normal(N, C), target=normal(C), var=uniform(N, low=0.3)),
               {}, ("input", "target", "var"))
    for s in ((C,), (1, C), (N, 1), ()):
        yield Case("binary_cross_entropy_with_logits", f"broadcast-weight{s}",
                   arrays(input=normal(N, C), target=uniform(N, C), weight=uniform(*s), pos_weight=uniform(*s)))
        yield Case("binary_cross_entropy", f"broadcast-weight{s}",
                   arrays(input=uniform(N, C, low=0.1, high=0.9), target=uniform(N, C), weight=uniform(*s)), second=1e-6)


def classes() -> Iterator[Case]:
    """Losses with an axis of classes: at dimension 1, or last."""
    for word, lead, tail in (("vector", (), ()), ("matrix", (N,), ()), ("empty", (0,), ()), ("one", (1,), ()),
                             ("line", (N,), (3,)), ("image", (2,), (3, 2)), ("volume", (2,), (2, 1, 2))):
        s, t = (*lead, C, *tail), (*lead, *tail)
        x, w = normal(*s), uniform(C, low=0.1)
        for ignored, given in ((None, False), (-100, True), (2, False), (2, True), (-1, True)):
            extra: dict[str, Any] = {"weight": w} if given else {}
            params: dict[str, Any] = {} if ignored in (None, -100) else {"ignore_index": ignored}
            name = f"{word}-ignore{ignored}" + "-weight" * given
            y = labels(*t, ignored=ignored)
            yield Case("nll_loss", name, arrays(input=x, target=y, **extra), params)
            for e in (0.0, 0.2, 1.0):
                yield Case("cross_entropy", f"{name}-smooth{e}", arrays(input=x, target=y, **extra),
                           params | {"label_smoothing": e})
        for e, given in itertools.product((0.0, 0.2), (False, True)):
            extra = {"weight": w} if given else {}
            yield Case("cross_entropy", f"{word}-probabilities-smooth{e}" + "-weight" * given,
                       arrays(input=x, target=uniform(*s), **extra), {"label_smoothing": e}, ("input", "target"))
    for word, s in (("vector", (C,)), ("matrix", (N, C)), ("empty", (0, C)), ("deep", (2, 3, C))):
        yield Case("multilabel_soft_margin_loss", word, arrays(input=normal(*s), target=bits(*s)))
        for w in ((C,), s):
            yield Case("multilabel_soft_margin_loss", f"{word}-weight{w}",
                       arrays(input=normal(*s), target=bits(*s), weight=uniform(*w)))


def vectors() -> Iterator[Case]:
    """Losses of vectors, features last."""
    for word, s in (("vector", ()), ("matrix", (N,)), ("empty", (0,)), ("one", (1,))):
        v = normal(*s, D)
        yield Case("cosine_embedding_loss", word, arrays(input1=v, input2=v, target=signs(*s)), {"margin": 0.1},
                   ("input1", "input2"))
        yield Case("cosine_embedding_loss", f"{word}-other", arrays(input1=v, input2=v, target=normal(*s)), {},
                   ("input1", "input2"))
    for word, s in (("vector", ()), ("matrix", (N,)), ("empty", (0,)), ("one", (1,)), ("deep", (3, 2))):
        v = normal(*s, D)
        for p, swap in itertools.product((0.0, 0.5, 1.0, 2.0, 3.0, np.inf), (False, True)):
            if not (p == np.inf and word == "empty"):                   # here PyTorch raises
                yield Case("triplet_margin_loss", f"{word}-p{p}" + "-swap" * swap, arrays(anchor=v, positive=v, negative=v),
                           {"p": p, "swap": swap, "margin": 0.7}, ("anchor", "positive", "negative"))
    yield Case("triplet_margin_loss", "eps", arrays(anchor=normal(N, D), positive=normal(N, D), negative=normal(N, D)),
               {"eps": 0.1, "margin": 2.0}, ("anchor", "positive", "negative"))
    yield Case("triplet_margin_loss", "broadcast", arrays(anchor=normal(N, D), positive=normal(1, D), negative=normal(N, D)),
               {}, ("anchor", "positive", "negative"))


CASES = [*pointwise(), *broadcast(), *classes(), *vectors()]
ORDINARY = [c for c in CASES if c.id.split("-")[0] in ("matrix", "line")][::2]


def names(cases: list[Case]) -> list[str]:
    return [f"{c.loss}-{c.id}" for c in cases]


def seeded(case: Case) -> dict[str, Array]:
    return {k: np.asarray(v) for k, v in case.make(np.random.default_rng(zlib.crc32(case.id.encode()))).items()}


def reference(case: Case, given: dict[str, Array], reduction: str, upstream: Array | None,
              directions: dict[str, Array]) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Value, gradients and second-order products of PyTorch, in float64."""
    tensors = {k: torch.tensor(v.astype(np.float64) if v.dtype.kind == "f" else v) for k, v in given.items()}
    wrt = [tensors[k].requires_grad_() for k in directions]
    value = getattr(F, case.loss)(**tensors, **case.params, reduction=reduction)
    if upstream is None:
        return value.detach().numpy(), {}, {}
    given_back = torch.autograd.grad(value, wrt, torch.tensor(upstream), create_graph=True, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(wrt, given_back, strict=True)]
    along = sum((g * torch.tensor(v)).sum() for g, v in zip(found, directions.values(), strict=True))
    second: Any = [None] * len(wrt)
    if isinstance(along, torch.Tensor) and along.requires_grad:
        second = torch.autograd.grad(along, wrt, allow_unused=True)
    gradients = {k: g.numpy(force=True) for k, g in zip(directions, found, strict=True)}
    products = {k: np.zeros(given[k].shape) if h is None else (h + 0).numpy(force=True)
                for k, h in zip(directions, second, strict=True)}
    return value.numpy(force=True), gradients, products


def close(found: Any, expected: Array, tolerance: float, dtype: Any, what: str) -> None:
    """Equal up to a tolerance relative to the largest expected number; NaN and inf in the same places."""
    assert np.asarray(found).dtype == dtype, what
    assert np.shape(found) == expected.shape, what
    scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1.0)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance * scale, err_msg=what)


BOTH = [(c, np.float64) for c in CASES] + [(c, np.float32) for c in CASES if c.id.split("-")[0] in ("matrix", "line", "var")]


@pytest.mark.parametrize(("case", "dtype"), BOTH, ids=[f"{c.loss}-{c.id}-{d.__name__}" for c, d in BOTH])
def test_like_torch(case: Case, dtype: Any, targets: dict[str, Any]) -> None:
    given = {k: np.asarray(v, dtype) if v.dtype.kind == "f" else v for k, v in seeded(case).items()}
    rng = np.random.default_rng(1)
    tolerance = 1e-11 if dtype is np.float64 else 2e-4
    directions = {k: rng.normal(size=given[k].shape) for k in case.differentiable}
    for reduction in case.reductions:
        shape = np.shape(reference(case, given, reduction, None, {})[0])
        upstream = rng.normal(size=shape)
        value, gradients, products = reference(case, given, reduction, upstream, directions)
        for target, library in targets.items():
            loss = getattr(library, case.loss)
            how: dict[str, Any] = {**given, **case.params, "reduction": reduction}
            label = f"{target} {reduction}"
            close(loss(**how), value, tolerance, dtype, f"{label} value")
            again, grads = loss.value_and_grad(**how, wrt=case.differentiable, upstream=upstream)
            close(again, value, tolerance, dtype, f"{label} value with gradient")
            seconds = loss.hvp(**how, direction=directions, wrt=case.differentiable, upstream=upstream)
            for k in case.differentiable:
                close(getattr(grads, k), gradients[k], tolerance, dtype, f"{label} gradient by {k}")
                close(getattr(seconds, k), products[k], max(tolerance, case.second), dtype, f"{label} second by {k}")
            rate = np.sum(np.asarray(loss.jvp(**how, direction=directions, wrt=case.differentiable), float) * upstream)
            slope = sum(float(np.sum(gradients[k] * v)) for k, v in directions.items())
            if not np.isnan(value).any():           # the mean of nothing is NaN, and so is its rate
                assert rate == pytest.approx(slope, rel=10 * tolerance, abs=30 * tolerance), f"{label} jvp"


# Layouts

def strided(a: Array) -> Array:
    wide = np.full([2 * n for n in a.shape], 77, a.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "strided": strided,
    "negative": lambda a: np.ascontiguousarray(a[tuple(slice(None, None, -1) for _ in a.shape)])[
        tuple(slice(None, None, -1) for _ in a.shape)],
    "last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0) if a.ndim else a,
    "offset": lambda a: np.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape),
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "readonly": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("case", ORDINARY, ids=names(ORDINARY))
def test_layouts(case: Case, dtype: Any, targets: dict[str, Any]) -> None:
    """Whatever the strides, the same values and gradients: bit for bit in C; NumPy's own exp, log and sums round otherwise by
    stride, in the last bits."""
    plain = {k: np.ascontiguousarray(v, dtype if v.dtype.kind == "f" else None) for k, v in seeded(case).items()}
    for (target, library), (layout, lay_out) in itertools.product(targets.items(), LAYOUTS.items()):
        other = {k: lay_out(v) for k, v in plain.items()}
        loss = getattr(library, case.loss)
        want = loss.value_and_grad(**plain, **case.params, reduction="none", wrt=case.differentiable)
        got = loss.value_and_grad(**other, **case.params, reduction="none", wrt=case.differentiable)
        for k, a, b in (("value", got[0], want[0]), *zip(case.differentiable, got[1], want[1], strict=True)):
            assert a.dtype == b.dtype == dtype, k
            if target == "c":
                np.testing.assert_array_equal(a, b, err_msg=f"{target} {layout} {k}")
            else:
                close(a, b, 16 * np.finfo(dtype).eps, dtype, f"{target} {layout} {k}")
        for k, v in plain.items():
            np.testing.assert_array_equal(other[k], v, err_msg=f"{target} {layout} changed {k}")


# Threads

MANY = 300_000


def big(loss: str, rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, Any]]:
    """About 3e5 elements for each loss."""
    rows = MANY // 10
    x, y = rng.normal(size=MANY), rng.normal(size=MANY)
    matrix = rng.normal(size=(rows, 10))
    made: dict[str, Any] = {
        "binary_cross_entropy": {"input": rng.random(MANY), "target": rng.random(MANY)},
        "binary_cross_entropy_with_logits": {"input": x, "target": rng.random(MANY), "pos_weight": np.asarray(2.0)},
        "cosine_embedding_loss": {"input1": matrix, "input2": rng.normal(size=(rows, 10)), "target": signs(rows)(rng)},
        "cross_entropy": {"input": matrix, "target": rng.integers(0, 10, rows), "weight": rng.random(10)},
        "gaussian_nll_loss": {"input": x, "target": y, "var": rng.random(MANY)},
        "kl_div": {"input": x, "target": rng.random(MANY)},
        "margin_ranking_loss": {"input1": x, "input2": y, "target": signs(MANY)(rng)},
        "multilabel_soft_margin_loss": {"input": matrix, "target": bits(rows, 10)(rng)},
        "nll_loss": {"input": matrix, "target": rng.integers(0, 10, rows), "weight": rng.random(10)},
        "poisson_nll_loss": {"input": x, "target": counts(MANY)(rng)},
        "triplet_margin_loss": {"anchor": matrix, "positive": rng.normal(size=(rows, 10)), "negative": rng.normal(size=(rows, 10))},
        "l1_loss": {"input": x, "target": y, "weight": rng.random(MANY)},
    }
    return made.get(loss, {"input": x, "target": np.sign(y)}), {}


LOSSES = sorted({c.loss for c in CASES})


@pytest.mark.parametrize("loss", LOSSES)
def test_threads(loss: str, targets: dict[str, Any], rng: np.random.Generator) -> None:
    """1, 2 and 5 threads give the same bits; and so do two calls."""
    library = targets["c"]
    given, params = big(loss, rng)
    wrt = tuple(k for k, v in given.items() if v.dtype.kind == "f" and k in ("input", "input1", "input2", "anchor", "weight"))
    if loss == "binary_cross_entropy_with_logits":
        wrt = ("input", "pos_weight")           # a scalar that was broadcast: its gradient is a sum over everything
    before = library.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5, 5):
            library.set_num_threads(threads)
            assert library.get_num_threads() == threads
            function = getattr(library, loss)
            found: list[Any] = [function(**given, **params, reduction=r) for r in ("mean", "sum", "none")]
            value, grads = function.value_and_grad(**given, **params, wrt=wrt)
            results.append([*found, value, *grads])
    finally:
        library.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    close(results[0][1], np.asarray(getattr(targets["numpy"], loss)(**given, **params, reduction="sum")), 1e-12, np.float64, "sum")


def test_threads_must_be_positive(targets: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        targets["c"].set_num_threads(0)


# The deprecated arguments

LEGACY = [(None, None, None), (True, True, "mean"), (False, True, "sum"), (True, False, "none"), (False, False, "none"),
          (None, False, "none"), (False, None, "sum"), (True, None, "mean"), (None, True, "mean")]
OLD = [c for c in CASES if c.id == "matrix" and c.loss not in ("gaussian_nll_loss", "huber_loss")]


@pytest.mark.parametrize(("size_average", "reduce", "word"), LEGACY)
@pytest.mark.parametrize("case", OLD, ids=names(OLD))
def test_legacy(case: Case, size_average: Any, reduce: Any, word: Any, library: Any) -> None:
    """They win over reduction, with a UserWarning."""
    function, given = getattr(library, case.loss), seeded(case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(**given, size_average=size_average, reduce=reduce, reduction="sum")
    assert [w.category for w in caught] == ([UserWarning] if word else [])
    np.testing.assert_array_equal(found, function(**given, reduction=word or "sum"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = {k: torch.tensor(v) for k, v in given.items()}
        expected = getattr(F, case.loss)(**tensors, size_average=size_average, reduce=reduce, reduction="sum")
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


def test_elementwise_mean(library: Any) -> None:
    with pytest.warns(UserWarning, match="elementwise_mean"):
        assert library.l1_loss([1.0, 3.0], [0.0, 0.0], reduction="elementwise_mean") == 2.0


# Types

@pytest.mark.parametrize("case", [c for c in CASES if c.id.startswith("matrix")][::3],
                         ids=names([c for c in CASES if c.id.startswith("matrix")][::3]))
def test_mixed_types_give_float64(case: Case, library: Any) -> None:
    """One array of float64 among float32 makes everything float64; Python lists are float64."""
    given = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in seeded(case).items()}
    function = getattr(library, case.loss)
    first = next(k for k, v in given.items() if v.dtype.kind == "f")
    mixed = given | {first: given[first].astype(np.float64)}
    for reduction in case.reductions:
        assert np.asarray(function(**given, **case.params, reduction=reduction)).dtype == np.float32
        assert np.asarray(function(**mixed, **case.params, reduction=reduction)).dtype == np.float64
    lists = {k: v.tolist() for k, v in given.items()}
    assert np.asarray(function(**lists, **case.params)).dtype == np.float64


def test_integers_are_converted(library: Any) -> None:
    """Integers and bools join: to float32 beside float32, to float64 among themselves."""
    assert library.mse_loss(np.array([1, 2]), np.array([True, False])) == 2.0
    found = library.mse_loss(np.array([1, 2], np.float32), np.array([1, 0]), reduction="none")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [0, 4])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_every_integer_is_an_index(kind: Any, library: Any) -> None:
    assert library.nll_loss(np.array([[1.0, 2.0, 4.0]]), np.array([2], kind)) == -4.0

"""The losses as plain differentiable PyTorch: every derivative that PyTorch takes of them is ours.

The peers are the NumPy functions, which are held against the oracle elsewhere, and, for random definitions, the oracle itself.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest

from losscomp import catalogue, emit, sampling, show
from losscomp.check import Checked, check
from losscomp.language import (
    Abs,
    Eq,
    Hinge,
    Loss,
    Max,
    MaxOver,
    Min,
    Norm,
    Rational,
    Sqrt,
    Sum,
    Where,
    axis,
    exp,
    index,
    log,
    param,
    stated,
    stop_gradient,
    straight_through,
    tensor,
    xlogy,
)
from losscomp.oracle import exact, select
from losscomp.pipeline import Compiled, smoothed
from losscomp.render import render

torch = pytest.importorskip("torch", reason="the composites in PyTorch is NOT TESTED: PyTorch is not installed")
from torch.func import grad, hessian, jvp, vmap  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
LOSSES = catalogue.load(Path(__file__).parent.parent / "definitions")
COUNT = 6


@cache
def variants(name: str) -> list[Any]:
    """The form and the mark of every variant of a loss, without deriving anything."""
    groups = [[types.SimpleNamespace(form=form, mark="") for form in check(loss)] for loss in emit.forms_of(LOSSES[name])]
    if len(groups) > 1:
        emit.tag_forms(groups)                                           # type: ignore[arg-type]
    return [c for group in groups for c in group]


CASES = [(name, place) for name in LOSSES for place in range(len(variants(name)))]
IDS = [f"{name}{variants(name)[k].mark}{variants(name)[k].form.suffix}" for name, k in CASES]
each = pytest.mark.parametrize(("name", "place"), CASES, ids=IDS)


@dataclass
class Case:
    """A composite at some inputs, as a function of those that have a derivative."""

    form: Checked
    function: Callable[..., Any]
    arrays: dict[str, np.ndarray]
    params: dict[str, Any]
    moving: list[str]
    reduction: str = "none"

    @property
    def scalars(self) -> list[Any]:
        """The numbers of a call; whether the caller asked for a reduction is one, where the loss depends on that."""
        return [int(p.record.reduction == self.reduction) if p.record.reduction else self.params[p.name] for p in self.form.params]

    @property
    def tensors(self) -> dict[str, Any]:
        return {name: torch.from_numpy(np.array(array)) for name, array in self.arrays.items()}

    @property
    def inputs(self) -> tuple[Any, ...]:
        return tuple(self.tensors[name] for name in self.moving)

    @property
    def directions(self) -> tuple[Any, ...]:
        rng = np.random.default_rng(1)
        return tuple(torch.from_numpy(rng.normal(size=self.arrays[name].shape)) for name in self.moving)

    def call(self, **tensors: Any) -> tuple[Any, Any]:
        """The loss and the denominator of each sample."""
        return self.function(*(counted(t, tensors.get(t.name)) for t in self.form.inputs), *self.scalars)

    def each(self, *moving: Any) -> Any:
        """The loss of each sample."""
        return self.call(**{**self.tensors, **dict(zip(self.moving, moving, strict=True))})[0]

    def total(self, *moving: Any) -> Any:
        return self.each(*moving).sum()

    @property
    def gradient(self) -> Callable[..., tuple[Any, ...]]:
        return grad(self.total, tuple(range(len(self.moving))))

    def along(self, *moving: Any) -> Any:
        """The gradient along the directions, as a function."""
        return sum((g * d).sum() for g, d in zip(self.gradient(*moving), self.directions, strict=True))


def differences(targets: dict[str, Any], name: str, c: Case, xs: Any, vs: Any, step: float) -> list[Any]:
    """Central differences of second derivatives along the directions."""
    shifted = [{n: x.numpy() + side * step * v.numpy() for n, x, v in zip(c.moving, xs, vs, strict=True)} for side in (1, -1)]
    above, below = (peer(targets, name, c, **s).products for s in shifted)
    return [(a - b) / (2 * step) for a, b in zip(above, below, strict=True)]


def counted(t: Any, tensor: Any) -> Any:
    """A set of labels as kernels take it: how often each position is among them."""
    if t.record.until is None:
        return tensor
    given = (tensor == t.record.until).cumsum(-1) == 0
    return torch.zeros_like(tensor).scatter_add(-1, tensor.where(tensor != t.record.until, 0), given.to(tensor.dtype))


def case(name: str, place: int, stratum: str = "ties") -> Case:
    """One variant of a loss at sampled inputs; a label is left out, where it can be."""
    c = variants(name)[place]
    arrays, params = sampling.samples(c.form, stratum, COUNT, np.float64), sampling.parameters(c.form)
    for t in c.form.inputs:
        if t.record.ignore:
            arrays[t.name][::3] = params[t.record.ignore]
    module = importlib.import_module(f"losslib.torch.composites.{name}")
    function = getattr(module, "value" + c.mark + c.form.suffix)
    return Case(c.form, function, arrays, params, [t.name for t in c.form.differentiable])


def differ(got: Any, want: Any, tolerance: float) -> bool:
    """Do numbers differ, relative to the largest of their sample?"""
    got, want = ((x.detach() + 0).numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (got, want))
    if got.shape != want.shape:
        return True
    axes = tuple(range(1, want.ndim))
    scale = np.max(np.abs(np.where(np.isfinite(want), want, 0)), axis=axes, keepdims=True, initial=0) if axes else np.abs(want)
    with np.errstate(all="ignore"):
        error = np.abs(got - want) / np.maximum(1, scale)
    return not np.all((error <= tolerance) | (got == want) | (np.isnan(got) & np.isnan(want)))


def agree(what: str, got: Any, want: Any, tolerance: float = 1e-12) -> None:
    """Every result of `got` is that of `want`."""
    for k, (g, w) in enumerate(zip(got, want, strict=True)):
        assert not differ(g, w, tolerance), f"{what} {k}: {g} and not {w}"


@dataclass
class Peer:
    """What the NumPy functions say."""

    value: Any
    grads: tuple[Any, ...]
    products: tuple[Any, ...]


def peer(targets: dict[str, Any], name: str, c: Case, **arrays: np.ndarray) -> Peer:
    """Value, gradients and Hessian-vector products of each sample."""
    f, given = getattr(targets["numpy"], name), {**sampling.as_given(c.form, {**c.arrays, **arrays}), **c.params}
    directions = sampling.as_given(c.form, {n: d.numpy() for n, d in zip(c.moving, c.directions, strict=True)})
    laid = lambda results: tuple(sampling.moved(c.form, n, result) for n, result in zip(c.moving, results, strict=True))
    value, grads = f.value_and_grad(**given, reduction="none", wrt=c.moving)
    return Peer(value, laid(grads), laid(f.hvp(direction=directions, **given, reduction="none", wrt=c.moving)))


@each
@pytest.mark.parametrize("stratum", ["normal", "saturated", "ties"])
def test_equals_numpy(targets: dict[str, Any], name: str, place: int, stratum: str) -> None:
    """Value, gradient and Hessian-vector products by autograd; at ties and kinks, and where exponentials saturate."""
    c = case(name, place, stratum)
    want = peer(targets, name, c)
    xs = tuple(x.requires_grad_() for x in c.inputs)
    value = c.each(*xs)
    agree("value", [value], [want.value])
    if not value.requires_grad:                                          # a count: nothing moves it
        agree("grad", [torch.zeros_like(x) for x in xs], want.grads)
        return
    grads = torch.autograd.grad(value.sum(), xs, create_graph=True, allow_unused=True, materialize_grads=True)
    agree("grad", grads, want.grads)
    along = sum((g * d).sum() for g, d in zip(grads, c.directions, strict=True))
    zeros = [torch.zeros_like(x) for x in xs]
    products = torch.autograd.grad(along, xs, allow_unused=True, materialize_grads=True) if along.requires_grad else zeros
    agree("hvp", products, want.products)


@each
def test_denominator(targets: dict[str, Any], name: str, place: int) -> None:
    """What the mean divides by, with optional inputs and without."""
    c = case(name, place)
    c.reduction = "mean"
    optional = {t.name for t in c.form.inputs if t.record.default is not None}
    for left_out in ({}, optional) if optional else ({},):
        given = {n: t for n, t in c.tensors.items() if n not in left_out}
        value, denominator = c.call(**given)
        assert value.shape == (COUNT,) and (denominator == 1.0 if isinstance(denominator, float) else denominator.shape == (COUNT,))
        below = denominator.sum() if isinstance(denominator, torch.Tensor) else denominator * COUNT
        arrays = sampling.as_given(c.form, {n: c.arrays[n] for n in given})
        want = getattr(targets["numpy"], name)(**arrays, **c.params, reduction="mean")
        agree("mean", [value.sum() / below], [want])


@each
def test_transforms(targets: dict[str, Any], name: str, place: int) -> None:
    """Every way in which PyTorch takes first and second derivatives gives the same."""
    c = case(name, place, "normal")
    want, xs, vs = peer(targets, name, c), c.inputs, c.directions
    rate = sum(float((torch.from_numpy(np.asarray(g)) * v).sum()) for g, v in zip(want.grads, vs, strict=True))
    bend = sum(float((torch.from_numpy(np.asarray(h)) * v).sum()) for h, v in zip(want.products, vs, strict=True))
    every = tuple(range(len(xs)))
    agree("func.grad", c.gradient(*xs), want.grads)
    agree("reverse over reverse", grad(c.along, every)(*xs), want.products)
    agree("forward over reverse", jvp(c.gradient, xs, vs)[1], want.products)
    agree("forward", [jvp(c.total, xs, vs)[1]], [rate])
    agree("forward over forward", [jvp(lambda *x: jvp(c.total, x, vs)[1], xs, vs)[1]], [bend])
    agree("reverse over forward", grad(lambda *x: jvp(c.total, x, vs)[1], every)(*xs), want.products)
    blocks = hessian(c.total, every)(*xs)
    agree("hessian", [sum(torch.tensordot(blocks[i][k], vs[k], vs[k].dim()) for k in every) for i in every], want.products, 1e-11)
    with torch.autograd.forward_ad.dual_level():
        dual = c.total(*(torch.autograd.forward_ad.make_dual(x, v) for x, v in zip(xs, vs, strict=True)))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    agree("dual numbers", [torch.zeros(()) if tangent is None else tangent], [rate])
    lanes = [torch.stack([x, x.flip(0) if x.shape[0] == COUNT else x]) for x in xs]
    agree("vmap", [g[0] for g in vmap(c.gradient)(*lanes)], want.grads)
    agree("vmap of forward", [vmap(lambda *x: jvp(c.total, x, vs)[1])(*lanes)[0]], [rate])


@each
def test_layouts(name: str, place: int) -> None:
    """Any leading dimensions are the batch, none and empty ones too; types; tensors without data."""
    c = case(name, place)
    per_sample = {t.name for t in c.form.inputs if t.record.per_sample}
    value, _ = c.call(**c.tensors)
    shaped = lambda shape: {n: t.reshape(shape + t.shape[1:]) if n in per_sample else t for n, t in c.tensors.items()}
    for shape in ((2, 3), (1, 3, 2), (6, 1)):
        again, denominator = c.call(**shaped(shape))
        agree("value", [again.reshape(COUNT)], [value])
        assert again.shape == shape and getattr(denominator, "shape", shape) == shape
    for part in (0, slice(0, 0)):
        cut, denominator = c.call(**{n: t[part] if n in per_sample else t for n, t in c.tensors.items()})
        agree("value", [cut], [value[part]])
        assert getattr(denominator, "shape", cut.shape) == cut.shape
    optional = {t.name for t in c.form.inputs if t.record.default is not None}
    ones = c.call(**{n: torch.ones_like(t) if n in optional else t for n, t in c.tensors.items()})[0]
    agree("left out", [c.call(**{n: t for n, t in c.tensors.items() if n not in optional})[0]], [ones])
    for kind in ("float16", "bfloat16", "float32", "float64"):
        narrow = {n: t.to(getattr(torch, kind)) if t.is_floating_point() else t for n, t in c.tensors.items()}
        wide = {n: t.float() if t.dtype.itemsize == 2 else t for n, t in narrow.items()}
        result = c.call(**narrow)[0]
        assert result.dtype == (torch.float64 if kind == "float64" else torch.float32)
        assert torch.equal(result.nan_to_num(), c.call(**wide)[0].nan_to_num())
    meta = c.call(**{n: t.to("meta") for n, t in c.tensors.items()})[0]
    assert meta.shape == (COUNT,) and meta.device.type == "meta"


@each
def test_third_order(targets: dict[str, Any], name: str, place: int) -> None:
    """Third derivatives, against differences of NumPy's second ones."""
    c = case(name, place, "normal")
    xs, vs = c.inputs, c.directions
    every, step = tuple(range(len(xs))), 1e-5
    for t in c.form.inputs:                                              # domains, and which arm a sample is in, must not change
        low, high, _ = t.record.domain.interval
        if t.name in c.moving and (np.isfinite(low) or np.isfinite(high)):
            c.arrays[t.name] = np.clip(c.arrays[t.name], low + 0.05, (high if np.isfinite(high) else 1e9) - 0.05)
    labels = {t.name for t in c.form.inputs if sampling.compared_with(c.form, t)}
    xs = c.inputs
    vs = tuple(v * 0 if n in labels else v for n, v in zip(c.moving, vs, strict=True))
    want, near = (differences(targets, name, c, xs, vs, h) for h in (step, step / 2))
    settled = [np.abs(a - b) <= 1e-5 * np.maximum(1, np.abs(b)) for a, b in zip(want, near, strict=True)]     # not at a singularity
    assert np.mean([np.mean(s) for s in settled]) > 0.5
    got = jvp(grad(c.along, every), xs, vs)[1]
    reverse = grad(lambda *x: sum((h * v).sum() for h, v in zip(grad(c.along, every)(*x), vs, strict=True)), every)(*xs)
    agree("reverse, three times", reverse, got, 1e-9)
    chosen = lambda found: [np.where(s, torch.as_tensor(x).detach().numpy(), 0) for x, s in zip(found, settled, strict=True)]
    agree("third", chosen(got), chosen(want), 1e-4)


KINDS = {"pointwise": "huber_loss", "a stated slope": "binary_cross_entropy", "rows": "cross_entropy", "a gather": "nll_loss",
         "a norm": "triplet_margin_loss"}


@pytest.mark.parametrize("kind", KINDS)
def test_compiles(kind: str) -> None:
    """In one graph with dynamic shapes: the loss, and transforms inside of it."""
    c = case(KINDS[kind], {"a norm": 4, "rows": 1}.get(kind, 0))
    xs, vs, given, names = c.inputs, c.directions, c.tensors, [t.name for t in c.form.inputs]
    function, scalars = c.function, c.scalars

    def total(*moving: Any) -> Any:
        now = {**given, **dict(zip(c.moving, moving, strict=True))}
        return function(*(now[n] for n in names), *scalars)[0].sum()

    gradient = grad(total, tuple(range(len(xs))))
    mapped = lambda *x: vmap(gradient)(*(torch.stack([z, z]) for z in x))
    for function_of in (gradient, mapped if kind == "rows" else lambda *x: jvp(gradient, x, vs)[1]):
        torch._dynamo.reset()
        compiled = torch.compile(function_of, fullgraph=True, dynamic=True, backend="aot_eager")
        agree(kind, compiled(*xs), function_of(*xs))


def test_symbolic_trace() -> None:
    """make_fx with symbolic shapes traces a loss with a gradient."""
    from torch.fx.experimental.proxy_tensor import make_fx

    c = case("cross_entropy", 2)
    graph = make_fx(lambda x, y: grad(lambda z: c.function(z, y, None, 0.0)[0].sum())(x), tracing_mode="symbolic")
    x, y = c.tensors["input"], c.tensors["target"]
    traced = graph(x, y)
    agree("traced", [traced(x[:4], y[:4])], [grad(lambda z: c.function(z, y[:4], None, 0.0)[0].sum())(x[:4])])


@pytest.mark.parametrize("size", [40.0, 1e4])
def test_far_from_zero(targets: dict[str, Any], size: float) -> None:
    """Logits that saturate everything: derivatives are finite and right."""
    for name in ("binary_cross_entropy_with_logits", "soft_margin_loss", "cross_entropy"):
        c = case(name, 0)
        x = c.arrays["input"]
        c.arrays["input"] = np.where(np.arange(x.size).reshape(x.shape) % 2, size, -size)
        want = peer(targets, name, c)
        every = tuple(range(len(c.moving)))
        first, second = c.gradient(*c.inputs), grad(c.along, every)(*c.inputs)
        agree(name, [*first, *second], [*want.grads, *want.products])
        assert all(torch.isfinite(g).all() for g in (*first, *second)), (name, first, second)


def test_left_out_is_left_out() -> None:
    """A sample that is ignored, or whose arm does not hold, passes nothing on, whatever is in it."""
    for bad in (np.nan, np.inf, -np.inf):
        c = case("cross_entropy", 0)
        ignored = c.arrays["target"] == c.params["ignore_index"]
        c.arrays["input"][ignored] = bad
        first, second = c.gradient(*c.inputs), grad(c.along, (0, 1))(*c.inputs)
        assert ignored.any() and all(torch.isfinite(g).all() for g in (*first, *second))
        assert (first[0][ignored] == 0).all() and (second[0][ignored] == 0).all()


def test_infinite_logits(targets: dict[str, Any]) -> None:
    """An infinite logit is worth what it is in the other targets: a certain class, or an impossible one."""
    c = case("cross_entropy", 0, "normal")
    for sign in (1, -1):
        c.arrays["input"][:, 1] = sign * np.inf
        agree("value", [c.each(*c.inputs)], [peer(targets, "cross_entropy", c).value])


# Definitions that no loss of the catalogue is, against the oracle

serial = iter(range(10**6))


@pytest.fixture
def load() -> Iterator[Callable[[Loss], types.ModuleType]]:
    """The composite of a definition as a module."""
    package = "composites_under_test"
    names = [package, f"{package}.composites", f"{package}._math"]
    made = [types.ModuleType(name) for name in names]
    made[0].__path__, made[1].__path__ = [], []                          # type: ignore[attr-defined]
    made[0]._math = made[2]                                              # type: ignore[attr-defined]
    exec(compile(render("torch/math.py.jinja"), "math", "exec"), made[2].__dict__)
    sys.modules |= dict(zip(names, made, strict=True))

    def load_one(loss: Loss) -> types.ModuleType:
        compiled = [Compiled(form, smoothed(form)[0], [], [], [], {}) for form in check(loss)]
        text = emit.emit_composite(compiled, {"summary": "", "formula": "", "shapes": "", "source": ""})
        module = types.ModuleType(f"{names[1]}.m{next(serial)}")
        module.__package__ = names[1]
        exec(compile(text, loss.name, "exec"), module.__dict__)
        return module

    yield load_one
    for name in names:
        del sys.modules[name]


def disagreements(grown: fuzzing.Grown, module: types.ModuleType) -> list[str]:
    """What differs from the oracle: value, gradients and Hessian-vector products of the sum and the mean."""
    form = select(check(grown.loss), grown.params)
    params = {p.name: grown.params.get(p.name, p.record.default) for p in form.params}
    moving = [t.name for t in form.differentiable if t.name in grown.tensors]
    c = Case(form, getattr(module, "value" + form.suffix), grown.tensors, params, moving)
    directions = {n: d.numpy() for n, d in zip(moving, c.directions, strict=True)}
    bad = []
    for reduction in ("sum", "mean"):
        truth = exact(form, grown.tensors, params, reduction=reduction, wrt=moving, directions=directions)

        def reduced(*xs: Any, whole: bool = reduction == "sum") -> Any:
            value, denominator = c.call(**{**c.tensors, **dict(zip(moving, xs, strict=True))})
            below = denominator.sum() if isinstance(denominator, torch.Tensor) else value.numel()
            return value.sum() / (1 if whole else below)

        every = tuple(range(len(moving)))
        along = lambda *xs, f=reduced: sum((g * d).sum() for g, d in zip(grad(f, every)(*xs), c.directions, strict=True))  # noqa: B023
        found = {"value": ([reduced(*c.inputs)], [truth.value.high]),
                 "grad": (grad(reduced, every)(*c.inputs), [truth.grad[n].high for n in moving]),
                 "hvp": (grad(along, every)(*c.inputs), [truth.hvp[n].high for n in moving])}
        bad += [f"{reduction} {what} {k}: {g} and not {w}" for what, (got, want) in found.items()
                for k, (g, w) in enumerate(zip(got, want, strict=True)) if differ(g, w, 1e-9)]
    return bad


def test_random_definitions(load: Callable[[Loss], types.ModuleType]) -> None:
    for seed in range(40):
        grown = fuzzing.grow(seed, 3)
        assert not disagreements(grown, load(grown.loss)), f"seed {seed}: {grown.loss.value}"


classes, features = axis("classes"), axis("features")
c, f = classes.index(), features.index()
x, u, s, t = tensor("x", classes), tensor("u", features), tensor("s"), tensor("t")
w, m = tensor("w", classes, per_sample=False), tensor("m", features, classes)
b = param("b", default=2.0, positive=True)
y, k = index("y", into=classes), index("k", features, into=classes)
RNG = np.random.default_rng(3)
X, U, S, T = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 2)), np.array([0.5, -0.25, 1.5]), RNG.normal(size=3)
W, M, Y, K = RNG.normal(size=4), RNG.normal(size=(3, 2, 4)), np.array([1, 0, 3]), np.array([[0, 1], [2, 3], [1, 1]])
ZEROS = np.zeros(3)

HARD: dict[str, tuple[Any, dict[str, Any]]] = {
    "a mask over a logarithm of 0": (Where(s > 0, log(s) * t, 0), {"s": np.array([0.0, 2.0, -1.0]), "t": T}),
    "a mask over a division by 0": (Where(Eq(s, 0), t**2, t / s), {"s": np.array([0.0, 2.0, -1.0]), "t": T}),
    "a mask in a mask": (Where(s > 0, Where(t > 0, log(s * t), s), t), {"s": np.array([0.0, 2.0, -1.0]), "t": np.array([0.0, -1, 1])}),
    "a mask over an overflow": (Where(s < 800, exp(s), s), {"s": np.array([1.0, 1e4, 2.0])}),
    "a mask in a sum": (Sum(Where(x[c] > 0, log(x[c]) / x[c], t), c), {"x": np.maximum(X, 0), "t": T}),
    "a mask over a sum of its own row": (Sum(Where(x[c] > 0, x[c] ** 2 * log(Sum(exp(x[c]), c)), x[c]), c), {"x": X}),
    "a mask that all of a row shares": (Where(t > 0, Norm(x[c], c), s), {"x": X * (T > 0)[:, None], "t": T, "s": S}),
    "a hinge at its kink, 1": (Hinge(s, tie=1) * t, {"s": ZEROS, "t": T}),
    "a hinge at its kink, 1/3": (Hinge(s, tie=Rational(1, 3)) * t, {"s": ZEROS, "t": T}),
    "a hinge at its kink, 0": (Hinge(s, tie=0) * t, {"s": ZEROS, "t": T}),
    "the larger at a tie": (Max(s**2, t, tie=Rational(1, 4)), {"s": S, "t": S**2}),
    "the smaller at a tie": (Min(s**2, t, tie=1), {"s": S, "t": S**2}),
    "the largest at a tie": (MaxOver(x[c] ** 2, c) * s, {"x": np.array([[1.0, -1, 0, 1], [2, 2, 2, 2], [0, 0, 0, 0]]), "s": S}),
    "an absolute value at 0": (Abs(s) * t + Abs(s) ** 3, {"s": ZEROS, "t": T}),
    "a root at 0": (Sqrt(s * t), {"s": np.array([0.0, 2, 0]), "t": np.array([1.0, 2, 0])}),
    "norms at 0": (sum(Norm(x[c], c, p) for p in (1, 2, 3)), {"x": np.array([[0.0, 0, 0, 0], [1, 0, -2, 0], [0, 0, 0, 3]])}),
    "a power that is no integer, at 0": (Sum(Abs(x[c]), c) * Norm(x[c], c, Rational(5, 2)), {"x": np.zeros((3, 4))}),
    "x log x": (xlogy(s, s) + xlogy(s, t) + s * log(s), {"s": np.array([1.0, 2, 0.5]), "t": np.array([1.0, 3, 0.2])}),
    "stop": (stop_gradient(s**2) * t + stop_gradient(exp(s)) * s, {"s": S, "t": T}),
    "straight through": (straight_through(Max(s, 1, tie=1), s) ** 3 * t, {"s": S, "t": T}),
    "straight through a function": (straight_through(exp(s), s**2) ** 2 * t, {"s": S, "t": T}),
    "stated": (stated(s**2, {s: 3 * s**2 * t, t: s**3}) * t, {"s": S, "t": T}),
    "stated in a function": (exp(stated(s, {s: s**2})) + t, {"s": S, "t": T}),
    "stated of a row": (Sum(stated(x[c] ** 2, {x[c]: x[c] ** 3 * s, s: x[c] ** 4 / 4}), c), {"x": X, "s": S}),
    "stated by what samples share": (Sum(stated(w[c] * x[c], {w[c]: w[c] ** 2 * x[c], x[c]: w[c] ** 3 / 3}), c), {"x": X, "w": W}),
    "stated in stated": (stated(s * t, {s: stated(s**2 * t, {s: 5 * s**3, t: s**2}), t: s**3 / 3}), {"s": S, "t": T}),
    "stated under a mask": (Where(t > 0, stated(s, {s: log(t), t: s / t}), s), {"s": S, "t": T}),
    "a softmax": (exp(x[y]) / Sum(exp(x[c]), c) * s, {"x": X, "y": Y, "s": S}),
    "a softmax of ties": (log(exp(x[y]) / Sum(exp(x[c]), c)) ** 2, {"x": np.zeros((3, 4)), "y": Y}),
    "logistic at 0": (log(1 + exp(s)) * t + 1 / (1 + exp(-s)), {"s": ZEROS, "t": T}),
    "a gather of gathers": (Sum(x[k[f]] ** 2 * w[k[f]] * u[f], f), {"x": X, "k": K, "w": W, "u": U}),
    "a cell of a matrix": (Sum(m[f, y] ** 2 * u[f], f) + m[0, y], {"m": M, "y": Y, "u": U}),
    "pairs": (Sum(Sum(Hinge(1 - x[c] + m[f, c] * u[f], tie=1) ** 2, c), f), {"x": X, "m": M, "u": U}),
    "a gather beside a matrix": (Sum(Sum(m[f, c] * x[k[f]] * x[c] ** 2, c), f), {"m": M, "x": X, "k": K}),
    "only numbers in a function": (s * log(b) + exp(b) + Where(b > 1, s**2, 0), {"s": S}),
    "numbers that stand still": (s * stop_gradient(b) + straight_through(1, s) ** 2 + straight_through(s, b), {"s": S}),
}


@pytest.mark.parametrize("what", HARD)
def test_hard_derivatives(what: str, load: Callable[[Loss], types.ModuleType]) -> None:
    value, arrays = HARD[what]
    loss = Loss(value, name="probe", doc="A probe.")
    assert not disagreements(fuzzing.Grown(loss, arrays, {}), load(loss))


def test_text() -> None:
    """The text says what it is, and nothing in it changes a tensor, leaves one unset, or asks for a number."""
    for name in LOSSES:
        text = inspect.getsource(importlib.import_module(f"losslib.torch.composites.{name}"))
        assert LOSSES[name].doc.strip().splitlines()[0] in text
        scalars = {p.name for v in variants(name) for p in v.form.params}
        for made, words in re.findall(r"^    (\w+) = ([\w .+*/()-]+)$", text, re.MULTILINE):             # numbers made of numbers
            scalars |= {made} if set(re.findall(r"[a-zA-Z_]\w*", words)) <= scalars else set()
        numbers = "|".join([*scalars, r"\w+_now"])                                                      # which Python may ask
        called = "|".join([m[1] for m in re.finditer(rf"(\w+) = (?:{numbers}) (?:==|<|>|<=|>=) [\d.]+\n", text)] or ["-"])
        asks = rf"\bif\b(?! (?:(?:{numbers}) == \d+|{called}) else)"
        assert not re.search(rf"\.item\(|\w_\(|torch\.empty|\.data\b|{asks}", text[text.index("@stable"):])


def test_show() -> None:
    """`losscomp show` prints a composite, whole and by function."""
    whole = "\n".join(show.show(LOSSES["nll_loss"], "emit", "torch"))
    one = "\n".join(show.show(LOSSES["nll_loss"], "emit", "torch", "value"))
    assert one.startswith("# src/losslib/torch/composites/nll_loss.py") and one.count("def ") == 1 and one.splitlines()[-1] in whole

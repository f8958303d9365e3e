"""Losses that are systems of tables as plain differentiable PyTorch, against exact arithmetic, enumeration and finite differences.

What lies behind a sample's own length is NaN, infinite or an index out of range in every test that says nothing else.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_composites import LOSSES, Case, agree, load  # noqa: F401
from test_recurrences import every_alignment, every_tagging, every_walk, every_warping

from losscomp.check import check
from losscomp.language import (
    Eq,
    If,
    LogAddExp,
    LogSumExp,
    Loss,
    Sum,
    Where,
    axis,
    exp,
    index,
    length,
    log,
    oo,
    param,
    state,
    stated,
    stop_gradient,
    straight_through,
    tensor,
)
from losscomp.oracle import exact, select

torch = pytest.importorskip("torch", reason="the composites in PyTorch is NOT TESTED: PyTorch is not installed")
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
Load = Callable[[Loss], types.ModuleType]
RECURRENT = [name for name, loss in LOSSES.items() if getattr(loss, "tables", ())]
ROOM = {"time": 4, "labels": 2, "classes": 3, "tags": 3, "steps": 3, "left": 3, "right": 4, "features": 2}
GARBAGE = (np.nan, np.inf, -np.inf, 1e300)


def pad(form: Any, arrays: dict[str, np.ndarray], value: float) -> dict[str, np.ndarray]:
    """The arrays, with `value` behind each sample's length, and no position at all in arrays of integers."""
    found = {}
    for t in form.inputs:
        array = arrays[t.name].copy()
        for k, a in enumerate(t.record.axes if t.record.per_sample else ()):
            of = next((m for m in form.inputs if m.record.measures == a), None)
            if of is not None:
                behind = np.arange(array.shape[k + 1]) >= arrays[of.name][:, None]
                array[behind[(slice(None), *[None] * k, slice(None), *[None] * (array.ndim - k - 2))] & np.ones(array.shape, bool)] = (
                    -7 if t.record.integer else value)
        found[t.name] = array
    return found


def sample(form: Any, lengths: list[tuple[int, ...]], seed: int = 0, room: dict[str, int] = ROOM) -> dict[str, np.ndarray]:
    """Arrays in the layout of kernels; each sample has its lengths, in the order of declaration."""
    rng, measures = np.random.default_rng(seed), [t.name for t in form.inputs if t.record.measures]
    found: dict[str, np.ndarray] = {}
    for t in form.inputs:
        shape = ((len(lengths),) if t.record.per_sample else ()) + tuple(room[a.name] for a in t.record.axes)
        if t.name in measures:
            found[t.name] = np.array([n[measures.index(t.name)] for n in lengths])
        else:
            values = rng.integers(0, room[t.record.into.name], shape) if t.record.integer else rng.normal(size=shape)
            found[t.name] = np.exp(values) if t.record.domain.low == 0 and not t.record.integer else values
    return found


def every_length(form: Any) -> list[tuple[int, ...]]:
    """All combinations of lengths."""
    return list(itertools.product(*(range(ROOM[t.record.measures.name] + 1) for t in form.inputs if t.record.measures)))


def prepared(module: types.ModuleType, loss: Loss, arrays: dict[str, np.ndarray], **params: Any) -> Case:
    """A composite at some inputs."""
    form = select(check(loss), params)
    scalars = {p.name: params.get(p.name, p.record.default) for p in form.params if not p.record.reduction}
    return Case(form, getattr(module, "value" + form.suffix), arrays, scalars, [t.name for t in form.differentiable])


def true(c: Case) -> tuple[Any, list[Any], list[Any]]:
    """Value, gradients and Hessian-vector products of each sample, exactly."""
    truth = exact(c.form, c.arrays, c.params, reduction="none", wrt=c.moving,
                  directions={n: d.numpy() for n, d in zip(c.moving, c.directions, strict=True)})
    return truth.value.high, [truth.grad[n].high for n in c.moving], [truth.hvp[n].high for n in c.moving]


def check_against_truth(c: Case, garbage: tuple[float, ...] = GARBAGE) -> None:
    """Value, gradient and Hessian-vector products, in two ways each, whatever lies behind the lengths."""
    value, grads, products = true(c)
    every, clean = tuple(range(len(c.moving))), c.arrays
    for bad in garbage:
        c.arrays = pad(c.form, clean, bad)
        agree("value", [c.each(*c.inputs)], [value])
        agree("gradient", c.gradient(*c.inputs), grads, 1e-11)
        agree("reverse over reverse", grad(c.along, every)(*c.inputs), products, 1e-11)
        agree("forward over reverse", jvp(c.gradient, c.inputs, c.directions)[1], products, 1e-11)
        rate = jvp(c.each, c.inputs, c.directions)[1]
        own = [g * d.numpy() for g, d, n in zip(grads, c.directions, c.moving, strict=True)]
        agree("forward", [rate.sum()], [sum(o.sum() for o in own)], 1e-11)
    c.arrays = clean


# The catalogue

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "ctc_loss": [{"normalized": 0}, {"normalized": 1}, {"normalized": 0, "blank": 2, "zero_infinity": 1}], "soft_dtw": [{"smoothing": 0.3}],
}
EVERY = [(name, params) for name in RECURRENT for params in SETTINGS.get(name, [{}])]
each = pytest.mark.parametrize(("name", "params"), EVERY, ids=[f"{n}-{k}" for k, (n, _) in enumerate(EVERY)])


@each
def test_equals_exact(name: str, params: dict[str, Any], load: Load) -> None:  # noqa: F811
    """Every combination of lengths, empty sequences and targets too long for theirs among them."""
    form = select(check(LOSSES[name]), params)
    for garbage in (GARBAGE[:1], GARBAGE[1:]):
        c = prepared(load(LOSSES[name]), LOSSES[name], sample(form, every_length(form)), **params)
        check_against_truth(c, garbage)


def counted(name: str, a: dict[str, Any], n: int) -> float:
    """The loss of a sample, by enumeration."""
    first, *more = (int(v[n]) for k, v in a.items() if k.endswith("lengths"))
    match name:
        case "ctc_loss":
            return every_alignment(a["log_probs"][n], a["targets"][n], first, more[0])
        case "crf_nll":
            return every_tagging(a["emissions"][n], a["transitions"], a["target"][n], first) if first else 0.0
        case "rnnt_loss":
            return every_walk(a["logits"][n], a["targets"][n], first, more[0])
        case "soft_dtw":
            return every_warping(a["input"][n, :first], a["target"][n, :more[0]], 1.0)
    pytest.fail(f"{name} has no enumeration: say in this test what it counts")


@pytest.mark.parametrize("name", RECURRENT)
def test_equals_enumeration(name: str, load: Load) -> None:  # noqa: F811
    form = check(LOSSES[name])[0]
    lengths = [n for n in every_length(form) if n[0] > 0 and (n[-1] > 0 or name != "soft_dtw")]
    c = prepared(load(LOSSES[name]), LOSSES[name], sample(form, lengths, 1))
    if name == "ctc_loss":                                               # a label is no blank
        c.arrays["targets"] = np.maximum(c.arrays["targets"], 1)
    want = [counted(name, c.arrays, n) for n in range(len(lengths))]
    c.arrays = pad(form, c.arrays, np.nan)
    agree(name, [c.each(*c.inputs)], [np.array(want)])


@pytest.mark.parametrize("name", RECURRENT)
def test_not_a_number(name: str, load: Load) -> None:  # noqa: F811
    """NaN in, NaN out, and into no other sample."""
    form = check(LOSSES[name])[0]
    whole = every_length(form)[-1]
    c = prepared(load(LOSSES[name]), LOSSES[name], sample(form, [whole, whole], 1))
    c.arrays[c.moving[0]][0, 1] = np.nan
    value, gradient = c.each(*c.inputs), c.gradient(*c.inputs)[0]
    assert torch.isnan(value[0]) and torch.isfinite(value[1]) and torch.isnan(gradient[0]).any() and torch.isfinite(gradient[1]).all()


@pytest.mark.parametrize("name", RECURRENT)
def test_numerically(name: str, load: Load) -> None:  # noqa: F811
    """Derivatives up to the third against finite differences, in reverse and forward mode, and in batches."""
    form = check(LOSSES[name])[0]
    whole = every_length(form)[-1]
    c = prepared(load(LOSSES[name]), LOSSES[name], sample(form, [whole, (2, 1)[:len(whole)]], 2), **SETTINGS.get(name, [{}])[0])
    xs = tuple(x.requires_grad_() for x in c.inputs)
    gradcheck = torch.autograd.gradcheck
    assert gradcheck(c.each, xs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(c.each, xs, check_fwd_over_rev=True, check_rev_over_rev=True)
    assert gradcheck(lambda *x: grad(c.along, tuple(range(len(x))))(*x), xs, fast_mode=True, check_forward_ad=True)


@pytest.mark.parametrize("name", RECURRENT)
def test_transforms(name: str, load: Load) -> None:  # noqa: F811
    """The ways in which PyTorch takes derivatives, and maps, agree; no batch and several batch dimensions are one batch."""
    form = check(LOSSES[name])[0]
    lengths = every_length(form)
    lengths = [lengths[-1], lengths[len(lengths) // 2], lengths[-2], lengths[0]]
    c = prepared(load(LOSSES[name]), LOSSES[name], pad(form, sample(form, lengths, 3), np.nan))
    xs, vs, every = c.inputs, c.directions, tuple(range(len(c.moving)))
    products = jvp(c.gradient, xs, vs)[1]
    blocks = hessian(c.total, every)(*xs)
    agree("hessian", [sum(torch.tensordot(blocks[i][k], vs[k], vs[k].dim()) for k in every) for i in every], products)
    agree("other way", [b for row in jacrev(jacfwd(c.total, every), every)(*xs) for b in row], [b for row in blocks for b in row])
    bend = sum((p * v).sum() for p, v in zip(products, vs, strict=True))
    agree("forward over forward", [jvp(lambda *x: jvp(c.total, x, vs)[1], xs, vs)[1]], [bend])
    third = jvp(grad(c.along, every), xs, vs)[1]
    agree("thrice", jvp(lambda *x: jvp(c.gradient, x, vs)[1], xs, vs)[1], third)
    lanes = [torch.stack([x, x + 0.5]) for x in xs]
    for k in (0, 1):
        agree("vmap", [g[k] for g in vmap(c.gradient)(*lanes)], c.gradient(*(lane[k] for lane in lanes)))
    rate = jvp(c.total, xs, vs)[1]
    with torch.autograd.forward_ad.dual_level():
        dual = c.total(*(torch.autograd.forward_ad.make_dual(x, v) for x, v in zip(xs, vs, strict=True)))
        agree("dual", [torch.autograd.forward_ad.unpack_dual(dual).tangent], [rate])
    value, given = c.each(*xs), c.tensors
    own = {t.name for t in form.inputs if t.record.per_sample}
    for shape in ((2, 2), (1, 4, 1)):
        shaped = {n: t.reshape(shape + t.shape[1:]) if n in own else t for n, t in given.items()}
        agree("shape", [c.call(**shaped)[0]], [value.reshape(shape)])
    agree("one", [c.call(**{n: t[1] if n in own else t for n, t in given.items()})[0]], [value[1]])
    one_by_one = vmap(lambda *x: c.call(**dict(zip(given, x, strict=True)))[0], tuple(0 if n in own else None for n in given))
    agree("samples mapped", [one_by_one(*given.values())], [value])
    assert c.call(**{n: t[:0] if n in own else t for n, t in given.items()})[0].shape == (0,)
    meta = c.call(**{n: t.to("meta") for n, t in given.items()})[0]
    assert meta.shape == (4,) and meta.device.type == "meta"
    narrow = c.call(**{n: t.float() if t.is_floating_point() else t for n, t in given.items()})[0]
    wide = c.call(**{n: t.float().double() if t.is_floating_point() else t for n, t in given.items()})[0]
    assert narrow.dtype == torch.float32 and torch.equal(narrow, wide.float())


def check_without_room(loss: Loss, module: types.ModuleType, room: dict[str, int]) -> None:
    """Axes without any position are worth what samples without any are."""
    form = check(loss)[0]
    measures = [t.record.measures.name for t in form.inputs if t.record.measures]
    for empty in itertools.product((False, True), repeat=len(measures)):
        none = {a for a, gone in zip(measures, empty, strict=True) if gone}
        lengths = [tuple(0 if a in none else room[a] for a in measures)] * 2
        less = {a: 0 if a in none else 1 if a == "steps" and "labels" in none else n for a, n in room.items()}
        c, arrays = prepared(module, loss, sample(form, lengths, 4, less)), sample(form, lengths, 4, room)
        for name, array in c.arrays.items():                             # the same numbers, where there are any
            c.arrays[name] = arrays[name][tuple(map(slice, array.shape))]
        again = prepared(module, loss, pad(form, arrays, np.nan))
        agree("value", [c.each(*c.inputs)], [again.each(*again.inputs)])
        for g, full in zip(c.gradient(*c.inputs), again.gradient(*again.inputs), strict=True):
            agree("gradient", [g], [full[tuple(map(slice, g.shape))]])


@pytest.mark.parametrize("name", RECURRENT)
def test_no_room(name: str, load: Load) -> None:  # noqa: F811
    check_without_room(LOSSES[name], load(LOSSES[name]), ROOM)


def test_no_way(load: Load) -> None:  # noqa: F811
    """Where no alignment is possible the loss is infinite, or 0, and all its derivatives are 0."""
    loss = LOSSES["ctc_loss"]
    form, module = check(loss)[0], load(loss)
    arrays = sample(form, [(2, 2), (4, 2), (0, 1)], 5)
    arrays["targets"][:] = 1                                             # repeated: takes three frames
    arrays["log_probs"][1, :, 2] = -np.inf                               # impossible, and needed by nothing
    for zero in (0, 1):
        for normalized in (0, 1):
            c = prepared(module, loss, pad(form, arrays, np.nan), zero_infinity=zero, normalized=normalized)
            (x,), (v,) = c.inputs, c.directions
            value, first, second = c.each(x), c.gradient(x)[0], jvp(c.gradient, (x,), (v,))[1][0]
            assert torch.equal(torch.isinf(value), torch.tensor([not zero, False, not zero]))
            for g in (first, second, grad(c.along)(x)):
                assert torch.isfinite(g).all() and (g[0] == 0).all() and (g[2] == 0).all() and (g[1] != 0).any()
    arrays["log_probs"][:] = -np.inf
    c = prepared(module, loss, arrays, normalized=0)
    assert torch.isinf(c.each(*c.inputs)).all() and (c.gradient(*c.inputs)[0] == 0).all()


def test_impossible_transitions(load: Load) -> None:  # noqa: F811
    """Transitions that cannot be: what remains is that of the tags that can."""
    loss = LOSSES["crf_nll"]
    form, module = check(loss)[0], load(loss)
    arrays = sample(form, [(4,), (2,)], 6)
    arrays["transitions"][:, 2] = arrays["transitions"][2, 0] = -np.inf
    arrays["emissions"][:, 0, 2] = -np.inf
    arrays["target"] = np.minimum(arrays["target"], 1)
    c = prepared(module, loss, arrays)
    agree("value", [c.each(*c.inputs)], [np.array([counted("crf_nll", arrays, n) for n in range(2)])])
    value = c.gradient(*c.inputs), grad(c.along, (0, 1))(*c.inputs), jvp(c.gradient, c.inputs, c.directions)[1]
    for first, second in value:
        assert torch.isfinite(first).all() and torch.isfinite(second).all()
        assert (first[:, :, 2] == 0).all() and (second[:, 2] == 0).all() and (second[2, 0] == 0).all()
    two = arrays | {"emissions": arrays["emissions"][..., :2], "transitions": arrays["transitions"][:2, :2]}
    small = prepared(module, loss, two)
    first, second = small.gradient(*small.inputs)
    agree("gradient", [value[0][0][..., :2], value[0][1][:2, :2]], [first, second])


def test_as_torch(load: Load) -> None:  # noqa: F811
    """PyTorch's own loss, where alignments are possible, on longer sequences."""
    rng, form, module = np.random.default_rng(7), check(LOSSES["ctc_loss"])[0], load(LOSSES["ctc_loss"])
    arrays = sample(form, [(40, 9), (31, 4), (12, 0)], 7, {"time": 40, "labels": 9, "classes": 6})
    arrays["targets"] = rng.integers(1, 6, (3, 9))
    x = torch.log_softmax(torch.from_numpy(arrays["log_probs"]), -1)
    arrays["log_probs"] = x.numpy()
    for mean in (0, 1):
        c = prepared(module, LOSSES["ctc_loss"], arrays, normalized=1)
        c.reduction = "mean" if mean else "sum"
        y, n, m = (c.tensors[k] for k in ("targets", "input_lengths", "target_lengths"))

        def peer(x: Any, mean: int = mean, y: Any = y, n: Any = n, m: Any = m) -> Any:
            found = torch.nn.functional.ctc_loss(x.transpose(0, 1), y, n, m, reduction="none")
            return found / m.clamp(min=1) if mean else found

        x = c.inputs[0].requires_grad_()
        agree("value", [c.each(x)], [peer(x).detach().numpy()])
        agree("gradient", torch.autograd.grad(c.each(x).sum(), x), [torch.autograd.grad(peer(x).sum(), x)[0].numpy()])


def test_compiles(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """In one graph, and so does its gradient."""
    for name, dynamic in (("ctc_loss", False), ("soft_dtw", True)):
        form, module = check(LOSSES[name])[0], load(LOSSES[name])
        monkeypatch.setitem(sys.modules, module.__name__, module)
        c = prepared(module, LOSSES[name], pad(form, sample(form, [(3, 2), (2, 1)], 8), np.nan))
        given, names, scalars, function = c.tensors, [t.name for t in form.inputs], c.scalars, c.function

        def total(x: Any, given: Any = given, first: str = c.moving[0], rest: Any = (names, scalars, function)) -> Any:
            names, scalars, function = rest
            return function(*(x if n == first else given[n] for n in names), *scalars)[0].sum()

        torch._dynamo.reset()
        compiled = torch.compile(grad(total), fullgraph=True, dynamic=dynamic, backend="aot_eager")
        agree(name, [compiled(c.inputs[0])], [grad(total)(c.inputs[0])])


# Systems that no loss of the catalogue is, against the oracle

time, places, features = axis("time"), axis("places"), axis("features")
n, m = length("time_lengths", of=time), length("place_lengths", of=places)
x, z, w = tensor("x", time, features), tensor("z", places), tensor("w", features, features, per_sample=False)
s, r = tensor("s"), tensor("r", time, positive=True)
k = index("k", time, into=features, length=n)
b = param("b", default=0.5)
t, i = axis("steps", extent=n).index(), axis("cells", extent=m).index()
f, g = features.index(), features.index()
T, P, F = 4, 3, 2


def one_index() -> Loss:
    """A mean that forgets, of logarithms: singular where a sample has nothing. It begins with a parameter."""
    a = state("a", t, outside=b)
    a[t] = a[t - 1] * exp(-b * s**2) + log(r[t]) / (r[t] - x[t, 0])
    return Loss(a[n - 1]**2, tables=(a,))


def two_before() -> Loss:
    """Two steps back, with different starts."""
    a = state("a", t, outside=2, start={(-2,): 1})
    a[t] = a[t - 1] * x[t, 0] + a[t - 2] / r[t]
    return Loss(a[n - 1] * Sum(x[t, 1]**2 / r[t], t), tables=(a,))


def second_serial() -> Loss:
    """Each row on its own, from left to right."""
    a = state("a", f, t, outside=1)
    a[f, t] = a[f, t - 1] * x[t, f] + x[t, f]**2 / r[t]
    return Loss(Sum(a[f, n - 1]**2, f), tables=(a,))


def later_start() -> Loss:
    """What lies left of the first cells differs from row to row."""
    a = state("a", t, f, outside=-oo, start={(-1, 0): 0, (1, -1): 2, (2, -1): 1})
    a[t, f] = LogAddExp(a[t - 1, f] + x[t, f], a[t - 1, f - 1])
    return Loss(LogSumExp(a[n - 1, f] * 2, f) * s, tables=(a,))


def whole_row() -> Loss:
    """All of the row before, a largest one too, through shared weights."""
    a = state("a", t, f)
    a[t, f] = x[t, f] + If(Eq(t, 0), 0, Sum(w[f, g] * a[t - 1, g]**2, g) / r[t])
    return Loss(Where(Eq(n, 0), 0, Sum(a[n - 1, f], f)), tables=(a,))


def diagonals() -> Loss:
    """Two tables along diagonals, the second of which reads the first, also at a far cell."""
    a = state("a", t, i, outside=2, start={(-1, -1): 0, (2, -1): 1, (-1, 1): 3})
    a[t, i] = a[t - 1, i] * z[i] + a[t, i - 1] * x[t, 0] + a[t - 1, i - 1]
    c = state("c", t, i, outside=-oo, start={(-1, -1): 0})
    c[t, i] = LogAddExp(c[t - 1, i] + a[t - 1, i], c[t, i - 1], c[t - 1, i - 1]) + a[t, i] / r[t]
    return Loss(c[n - 1, m - 1] + a[n - 1, m - 1]**2, tables=(a, c))


def of_integers() -> Loss:
    """Positions that were computed, in which others are read."""
    a = state("a", t, into=features, outside=-1)
    a[t] = If(Eq(t % 2, 0), k[0], k[t // 2])
    c = state("c", t, f)
    c[t, f] = If(Eq(a[t], a[t - 1]), x[t, f], c[t - 1, f] * w[f, a[t]])
    return Loss(Where(n > 0, Sum(c[n - 1, f]**2, f), s), tables=(a, c))


def said_otherwise() -> Loss:
    """Derivatives that are said, and not those of the value, in cells."""
    a = state("a", t, outside=1)
    said = stated(s * r[t], {s: 3 * s**2 * r[t], r[t]: s**3})
    a[t] = straight_through(x[t, 0], x[t, 0]**2) * a[t - 1] + stop_gradient(x[t, 1]) * s + said
    return Loss(a[n - 1]**2, tables=(a,))


def cell_sums() -> Loss:
    """Sums over what another axis has of the sample, in cells along the same axis; nothing before the first."""
    a = state("a", i)
    j = i.axis.index()
    a[i] = Sum(log((z[i] - z[j])**2 + s**2), j) + LogSumExp(x[t, 0] * z[i], t)
    return Loss(Sum(a[i] * z[i], i) + Sum(Sum(a[i] * r[t], i), t), tables=(a,))


def first_row() -> Loss:
    """A part that is singular in a first row which does not take it: in a loop over rows, and in all of them at once."""
    part = If(Eq(t, 0), s, log(t) * s * r[t] + s**2 / t)
    a = state("a", t)
    a[t] = a[t - 1] / 2 + part
    c = state("c", t)
    c[t] = a[t] * part
    return Loss(Sum(c[t], t)**2, tables=(a, c))


PROBES = [first_row, one_index, two_before, second_serial, later_start, whole_row, diagonals, of_integers, said_otherwise, cell_sums]


@pytest.mark.parametrize("probe", PROBES)
def test_other_systems(probe: Callable[[], Loss], load: Load) -> None:  # noqa: F811
    loss = probe().called("probe", doc=probe.__doc__)
    form = check(loss)[0]
    room = {"time": T, "places": P, "features": F}
    measures = [t.record.measures.name for t in form.inputs if t.record.measures]
    lengths = list(itertools.product(*(range(probe is cell_sums, room[a] + 1) for a in measures)))
    check_against_truth(prepared(load(loss), loss, sample(form, lengths, 9, room)))
    check_without_room(loss, load(loss), room)

"""Losses that are systems of tables: against all alignments, against PyTorch, against the oracle; and tables that are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import library

from losscomp import catalogue
from losscomp.check import check
from losscomp.errors import CheckError, DefinitionError
from losscomp.language import Eq, If, LogAddExp, Loss, Max, Sum, axis, index, length, oo, param, state, tensor
from losscomp.oracle import exact, ulp_error
from losscomp.recurrence import Table, schedule_of
from losscomp.sampling import as_given, moved, parameters, samples

Array = Any
DEFINITIONS = {name: d for name, d in catalogue.load(catalogue.builtin_definitions()).items() if getattr(d, "tables", ())}


# Every way that the formulas allow, one by one

def log_softmax(x: Array) -> Array:
    return x - np.logaddexp.reduce(x, -1, keepdims=True)


def total(terms: Iterator[float] | list[float]) -> float:
    return float(np.logaddexp.reduce(list(terms) or [-np.inf]))


def every_alignment(log_probs: Array, target: Array, frames: int, count: int, blank: int = 0) -> float:
    """The probability of a target as a sum over all paths of labels and blanks that collapse to it."""
    wanted = list(target[:count])
    scores = []
    for path in itertools.product(range(log_probs.shape[1]), repeat=frames):
        if [k for k, _ in itertools.groupby(path) if k != blank] == wanted:
            scores.append(sum(log_probs[t, k] for t, k in enumerate(path)))
    return -total(scores)


def every_tagging(emissions: Array, transitions: Array, target: Array, count: int) -> float:
    """The score of one way to tag, against those of all."""
    def score(tags: Any) -> float:
        return float(sum(emissions[t, tags[t]] for t in range(count)) + sum(transitions[tags[t - 1], tags[t]] for t in range(1, count)))

    return total(score(tags) for tags in itertools.product(range(emissions.shape[1]), repeat=count)) - score(target)


def every_walk(logits: Array, target: Array, frames: int, count: int, blank: int = 0) -> float:
    """The probability of a target as a sum over all orders of stays and labels; the last step stays."""
    log_probs, scores = log_softmax(logits), []
    for emitting in itertools.combinations(range(frames + count - 1), count):
        t = u = 0
        score = 0.0
        for k in range(frames + count - 1):
            score += log_probs[t, u, target[u] if k in emitting else blank]
            t, u = (t, u + 1) if k in emitting else (t + 1, u)
        scores.append(score + log_probs[t, u, blank])
    return -total(scores)


def every_warping(x: Array, y: Array, smoothing: float) -> float:
    """The soft minimum over all ways from the first pair of points to the last."""
    def ways(i: int, j: int) -> list[list[tuple[int, int]]]:
        if (i, j) == (0, 0):
            return [[(0, 0)]]
        before = [(a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0]
        return [[*way, (i, j)] for a, b in before for way in ways(a, b)]

    costs = [sum(((x[i] - y[j])**2).sum() for i, j in way) for way in ways(len(x) - 1, len(y) - 1)]
    return -smoothing * total([-cost / smoothing for cost in costs])


def test_ctc_is_the_sum_over_all_alignments(library: Any, rng: np.random.Generator) -> None:
    frames, count, classes = np.array([5, 4, 3, 1, 5, 0]), np.array([2, 3, 0, 1, 2, 0]), 3
    log_probs = log_softmax(rng.normal(size=(5, 6, classes)))
    targets = np.array([[1, 1, 9], [1, 2, 1], [7, 7, 7], [2, -4, 9], [2, 1, 0], [5, 5, 5]])          # what lies behind a length is not read
    expected = [every_alignment(log_probs[:, n], targets[n], frames[n], count[n]) for n in range(6)]
    np.testing.assert_allclose(library.ctc_loss(log_probs, targets, frames, count, reduction="none"), expected, rtol=1e-13)
    mean = np.mean(np.array(expected) / np.maximum(count, 1))
    np.testing.assert_allclose(library.ctc_loss(log_probs, targets, frames, count), mean, rtol=1e-13)
    np.testing.assert_allclose(library.ctc_loss(log_probs, targets, frames, count, reduction="sum"), np.sum(expected), rtol=1e-13)


def test_a_ctc_target_that_does_not_fit(library: Any, rng: np.random.Generator) -> None:
    """Two equal labels need a blank between them: three frames at least."""
    log_probs = log_softmax(rng.normal(size=(2, 1, 3)))
    call = (log_probs, np.array([[1, 1]]), np.array([2]), np.array([2]))
    value, grad = library.ctc_loss.value_and_grad(*call)
    assert value == np.inf and not grad.log_probs.any()
    value, grad = library.ctc_loss.value_and_grad(*call, zero_infinity=True)
    assert value == 0 and not grad.log_probs.any()
    assert not library.ctc_loss.hvp(*call, direction=np.ones_like(log_probs)).log_probs.any()


def test_the_blank_may_be_any_class(library: Any, rng: np.random.Generator) -> None:
    log_probs = log_softmax(rng.normal(size=(4, 1, 3)))
    expected = every_alignment(log_probs[:, 0], np.array([0, 1]), 4, 2, blank=2)
    np.testing.assert_allclose(library.ctc_loss(log_probs, np.array([[0, 1]]), [4], [2], blank=2, reduction="sum"), expected, rtol=1e-13)


def test_targets_end_to_end(library: Any, rng: np.random.Generator) -> None:
    log_probs = log_softmax(rng.normal(size=(6, 3, 4)))
    padded, frames, count = np.array([[1, 2, 3], [3, 0, 0], [2, 2, 0]]), np.array([6, 5, 6]), np.array([3, 1, 2])
    packed = np.array([1, 2, 3, 3, 2, 2])
    for reduction in ("none", "mean", "sum"):
        a = library.ctc_loss.value_and_grad(log_probs, padded, frames, count, reduction=reduction)
        b = library.ctc_loss.value_and_grad(log_probs, packed, tuple(frames), list(count), reduction=reduction)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1].log_probs, b[1].log_probs)
    alone = library.ctc_loss(log_probs[:, 0], padded[0], frames[0], count[0])
    np.testing.assert_allclose(alone, library.ctc_loss(log_probs[:, :1], padded[:1], frames[:1], count[:1]), rtol=1e-15)


def test_crf_is_the_sum_over_all_taggings(library: Any, rng: np.random.Generator) -> None:
    emissions, transitions = rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 3))
    target, lengths = rng.integers(0, 3, (3, 4)), np.array([4, 1, 0])
    target[1, 1:] = 99
    expected = [every_tagging(emissions[0], transitions, target[0], 4), every_tagging(emissions[1], transitions, target[1], 1), 0.0]
    np.testing.assert_allclose(library.crf_nll(emissions, transitions, lengths, target, reduction="none"), expected, rtol=1e-13)


def test_rnnt_is_the_sum_over_all_walks(library: Any, rng: np.random.Generator) -> None:
    logits, targets = rng.normal(size=(3, 4, 4, 5)), rng.integers(1, 5, (3, 3))
    frames, count = np.array([4, 3, 1]), np.array([3, 1, 0])
    targets[1, 1:] = -1
    expected = [every_walk(logits[n], targets[n], frames[n], count[n]) for n in range(3)]
    np.testing.assert_allclose(library.rnnt_loss(logits, targets, frames, count, reduction="none"), expected, rtol=1e-13)


def test_soft_dtw_is_the_soft_minimum_over_all_warpings(library: Any, rng: np.random.Generator) -> None:
    x, y, rows, columns = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 5, 2)), np.array([4, 2, 1]), np.array([5, 3, 1])
    for smoothing in (1.0, 0.1):
        expected = [every_warping(x[n, :rows[n]], y[n, :columns[n]], smoothing) for n in range(3)]
        found = library.soft_dtw(x, y, rows, columns, smoothing=smoothing, reduction="none")
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_derivatives_are_the_oracle_s(library: Any, name: str, dtype: str) -> None:
    """To a few units of the sum of the magnitudes: the oracle derives by jets and has no adjoint."""
    for form in check(DEFINITIONS[name]):
        tensors, params, wrt = samples(form, "normal", 4, dtype, seed=3), parameters(form), [t.name for t in form.wrt]
        rng = np.random.default_rng(4)
        ways = {n: rng.normal(size=tensors[n].shape).astype(dtype) for n in wrt}
        truth = exact(form, tensors, params, reduction="none", wrt=wrt, directions=ways)
        function, call = getattr(library, name), {**as_given(form, tensors), **params, "reduction": "none"}
        value, grads = function.value_and_grad(**call)
        products = function.hvp(**call, direction=as_given(form, ways))
        eps = np.finfo(dtype).eps
        assert np.nanmax(ulp_error(value, truth.value, dtype), initial=0) < 4
        for n in wrt:
            for found, true in ((grads, truth.grad[n]), (products, truth.hvp[n])):
                np.testing.assert_allclose(moved(form, n, getattr(found, n)), true.high, rtol=64 * eps,
                                           atol=64 * eps * max(1.0, np.abs(true.high).sum()))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_lies_behind_a_length_is_not_read(library: Any, name: str) -> None:
    """Real numbers behind it may be NaN, and labels anything; gradients there are 0."""
    (form,) = check(DEFINITIONS[name])
    tensors = samples(form, "normal", 5, "float64", seed=1)
    spoiled = {k: v.copy() for k, v in tensors.items()}
    measured = {t.record.measures: t.name for t in form.inputs if t.record.measures}
    behind = {}
    for t in form.inputs:
        for k, a in enumerate(t.record.axes):
            if not t.record.per_sample or (a not in measured and t.record.length is None):
                continue
            name_of_length = t.record.length or measured[a]
            shape = [1] * spoiled[t.name].ndim
            shape[0], shape[k + 1] = -1, 1
            places = np.arange(spoiled[t.name].shape[k + 1]).reshape([-1 if d == k + 1 else 1 for d in range(len(shape))])
            mask = np.broadcast_to(places >= tensors[name_of_length].reshape(shape), spoiled[t.name].shape)
            spoiled[t.name][mask] = -7 if t.record.integer else np.nan
            behind[t.name] = mask
    assert any(mask.any() for mask in behind.values())
    function = getattr(library, name)
    clean = function.value_and_grad(**as_given(form, tensors))
    found = function.value_and_grad(**as_given(form, spoiled))
    assert found[0] == clean[0]
    for t in form.wrt:
        grad = moved(form, t.name, getattr(found[1], t.name))
        np.testing.assert_array_equal(grad, moved(form, t.name, getattr(clean[1], t.name)))
        if t.name in behind:
            assert not grad[behind[t.name]].any()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_lies_before_it_is(library: Any, name: str) -> None:
    """NaN in, NaN out."""
    (form,) = check(DEFINITIONS[name])
    tensors = samples(form, "normal", 1, "float64", seed=2)
    for t in form.inputs:
        if t.record.measures is not None:
            tensors[t.name][:] = tensors[next(o.name for o in form.inputs if t.record.measures in o.record.axes)].shape[1]
    first = form.wrt[0].name
    tensors[first][(0,) * tensors[first].ndim] = np.nan
    if form.inputs[0].record.axes[0].name == "time":                        # all of the first frame, whatever the labels are
        tensors[first][0, 0] = np.nan
    assert np.isnan(getattr(library, name)(**as_given(form, tensors)))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(targets: dict[str, Any], threads: int) -> None:
    C = targets["c"]
    rng = np.random.default_rng(0)
    log_probs = log_softmax(rng.normal(size=(40, 64, 30))).astype(np.float32)
    labels, frames, count = rng.integers(1, 30, (64, 12)), rng.integers(25, 41, 64), rng.integers(1, 13, 64)
    once = C.ctc_loss.value_and_grad(log_probs, labels, frames, count)
    backend = C.ctc_loss._backend
    before, backend.threads = backend.threads, threads
    try:
        again = C.ctc_loss.value_and_grad(log_probs + 0, labels, frames, count)
    finally:
        backend.threads = before
    assert once[0] == again[0] and np.array_equal(once[1].log_probs, again[1].log_probs)


# The feature is general

def running(name: str) -> Loss:
    """An exponential average along an axis that is as long as each sample says, and how far the last value is from it."""
    time = axis("time")
    x, count, decay = tensor("x", time), length("valid", of=time), param("decay", default=0.5, between=(0, 1))
    t = axis("steps", extent=count).index()
    mean = state("mean", t)
    mean[t] = decay * mean[t - 1] + (1 - decay) * x[t]
    return Loss((mean[count - 1] - 1)**2, tables=(mean,)).called(name)


def distance(name: str) -> Loss:
    """A table with a neighbour in the same row and a weight for every pair of classes: a soft edit distance."""
    left, right, letters = axis("left"), axis("right"), axis("letters")
    a, b = length("left_length", of=left), length("right_length", of=right)
    first, second = index("a", left, into=letters, length=a), index("b", right, into=letters, length=b)
    cost = tensor("cost", letters, letters, per_sample=False)
    skip = tensor("skip", letters, per_sample=False)
    i, j = axis("rows", extent=a).index(), axis("columns", extent=b).index()
    d = state("d", i, j, outside=oo, start={(-1, -1): 0})
    d[i, j] = -LogAddExp(-d[i - 1, j] - skip[first[i]], -d[i, j - 1] - skip[second[j]],
                         -d[i - 1, j - 1] - cost[first[i], second[j]])
    return Loss(If(Eq(a, 0) | Eq(b, 0), 0, d[a - 1, b - 1]), tables=(d,)).called(name)


def earlier(name: str) -> Loss:
    """A table of positions that is read where it has no cell."""
    classes, places = axis("classes"), axis("places")
    x, count = tensor("x", classes), length("valid", of=places)
    chosen = index("chosen", places, into=classes, length=count)
    s = axis("steps", extent=count).index()
    label, walk = state("label", s, into=classes, outside=-1), state("walk", s)
    label[s] = chosen[s]
    walk[s] = walk[s - 1] + x[label[s - 1]]
    return Loss(walk[count - 1], tables=(label, walk)).called(name)


def behind(name: str) -> Loss:
    """A table of positions over a whole axis, also where a sample has none."""
    classes, places = axis("classes"), axis("places")
    x, count = tensor("x", classes), length("valid", of=places)
    chosen = index("chosen", places, into=classes, length=count)
    j = places.index()
    label = state("label", j, into=classes)
    label[j] = chosen[j]
    return Loss(Sum(x[label[j]], j) * Max(count, 1, tie=1), tables=(label,)).called(name)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A library of recurrences that the catalogue does not have."""
    losses = [running("running"), distance("distance"), earlier("earlier"), behind("behind")]
    return library(losses, tmp_path_factory.mktemp("own"), "own_tables")


def slope(f: Callable[[float], Any], h: float = 1e-4) -> Any:
    """A central difference of fourth order."""
    return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)


def test_a_recurrence_of_one_index(own: dict[str, Any], rng: np.random.Generator) -> None:
    x, count = rng.normal(size=(3, 5)), np.array([5, 2, 0])
    expected = []
    for row, n in zip(x, count, strict=True):
        mean = 0.0
        for value in row[:n]:
            mean = 0.25 * mean + 0.75 * value
        expected.append((mean - 1)**2)
    v = rng.normal(size=x.shape)
    for L in own.values():
        f, rest = L.running, {"valid": count, "decay": 0.25}
        np.testing.assert_allclose(f(x, **rest, reduction="none"), expected, rtol=1e-14)
        grad = f.grad(x, **rest, reduction="sum").x
        np.testing.assert_allclose((grad * v).sum(), slope(lambda h, f=f, rest=rest: f(x + h * v, **rest, reduction="sum")), rtol=1e-9)
        product = f.hvp(x, **rest, direction=v, reduction="sum").x
        np.testing.assert_allclose(product, slope(lambda h, f=f, rest=rest: f.grad(x + h * v, **rest, reduction="sum").x), atol=1e-9)


def test_a_position_that_is_none_reads_the_next_one(own: dict[str, Any], rng: np.random.Generator) -> None:
    x, chosen, count = rng.normal(size=(3, 4)), np.array([[2, 3, 1], [1, -10**12, 10**12], [10**12, 7, -7]]), np.array([3, 1, 0])
    moved_inside = np.clip(chosen, 0, 3)
    walks = [sum(row[[0, *places[:n]][:n]]) for row, places, n in zip(x, moved_inside, count, strict=True)]
    sums = [max(n, 1) * sum(row[places]) for row, places, n in zip(x, moved_inside, count, strict=True)]
    slopes = [[max(n, 1) * list(places).count(c) for c in range(4)] for places, n in zip(moved_inside, count, strict=True)]
    for target, L in own.items():
        call = {"x": x, "valid": count, "chosen": chosen}
        np.testing.assert_allclose(L.earlier(**call, reduction="none"), walks, rtol=1e-14, err_msg=target)
        np.testing.assert_allclose(L.behind(**call, reduction="none"), sums, rtol=1e-14, err_msg=target)
        np.testing.assert_array_equal(L.behind.grad(**call, reduction="sum").x, slopes, err_msg=target)


def check_distance(f: Any, call: Callable[[float], dict[str, Any]], v: Array, w: Array) -> Array:
    """The values, once the derivatives by both inputs agree with differences."""
    grad = f.grad(**call(0))
    np.testing.assert_allclose((grad.cost * v).sum() + (grad.skip * w).sum(), slope(lambda h: f(**call(h))), rtol=1e-9)
    np.testing.assert_allclose(f.jvp(**call(0), direction={"cost": v, "skip": w}), slope(lambda h: f(**call(h))), rtol=1e-9)
    product = f.hvp(**call(0), direction={"cost": v, "skip": w})
    np.testing.assert_allclose(product.cost, slope(lambda h: f.grad(**call(h)).cost), atol=1e-9)
    np.testing.assert_allclose(product.skip, slope(lambda h: f.grad(**call(h)).skip), atol=1e-9)
    return f(**call(0), reduction="none")


def test_gradients_that_all_samples_share(own: dict[str, Any], rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 3, (4, 3)), rng.integers(0, 3, (4, 4))
    n, m = np.array([3, 1, 2, 0]), np.array([4, 3, 1, 2])
    cost, skip = rng.normal(size=(3, 3))**2, rng.normal(size=3)**2
    v, w = rng.normal(size=(3, 3)), rng.normal(size=3)
    call = lambda h: {"left_length": n, "right_length": m, "a": a, "b": b, "cost": cost + h * v, "skip": skip + h * w}
    values = [check_distance(L.distance, call, v, w) for L in own.values()]
    np.testing.assert_allclose(values[0], values[-1], rtol=1e-13)


# The order of cells

def order(*reads: tuple[Any, Any]) -> tuple[int, ...]:
    i, j = axis("rows").index(), axis("columns").index()
    t = state("t", i, j)
    return schedule_of(Table(t.tensor, (i, j), Sum(0, i) + sum(t[a(i), b(j)] for a, b in reads), t.outside))


BACK: Any = {k: lambda i, k=k: i - k for k in range(3)}


def test_the_order_is_found_from_the_offsets() -> None:
    same, one, two = BACK[0], BACK[1], BACK[2]
    ahead = lambda i: i + 1
    assert order() == ()
    assert order((one, same), (one, two)) == (1, 0)
    assert order((same, one)) == (0, 1)
    assert order((one, same), (same, one)) == (1, 1)
    assert order((one, ahead), (same, one)) == (2, 1)
    with pytest.raises(CheckError, match=r"cannot be put in order: a cell reads .*t\[rows"):
        order((same, same))


def refused(make: Callable[..., Any]) -> Callable[[], Any]:
    """A loss of a small system that `make` spoils."""
    def build() -> Any:
        time, classes = axis("time"), axis("classes")
        x, count = tensor("x", time, classes), length("valid", of=time)
        t, c = axis("steps", extent=count).index(), classes.index()
        return check(make(x, count, t, c, time, classes).called("spoiled"))

    return build


def no_formula(x: Any, count: Any, t: Any, c: Any, time: Any, classes: Any) -> Loss:
    a = state("a", t)
    return Loss(a[count - 1] + Sum(Sum(x[t, c], c), t), tables=(a,))


def not_listed(x: Any, count: Any, t: Any, c: Any, time: Any, classes: Any) -> Loss:
    a, b = state("a", t), state("b", t)
    a[t] = Sum(x[t, c], c)
    b[t] = a[t] + b[t - 1]
    return Loss(b[count - 1], tables=(b, a))


def behind_the_last(x: Any, count: Any, t: Any, c: Any, time: Any, classes: Any) -> Loss:
    a = state("a", t)
    a[t] = Sum(x[t, c], c) + a[t - 1]
    return Loss(a[count], tables=(a,))


def loose_index(x: Any, count: Any, t: Any, c: Any, time: Any, classes: Any) -> Loss:
    a = state("a", t)
    a[t] = x[t, c] + a[t - 1]
    return Loss(a[count - 1], tables=(a,))


def points_nowhere(x: Any, count: Any, t: Any, c: Any, time: Any, classes: Any) -> Loss:
    a = state("a", t, into=classes)
    a[t] = t
    return Loss(Sum(x[t, a[t]], t), tables=(a,))


@pytest.mark.parametrize(("make", "message"), [
    (no_formula, "the table 'a' has no formula"),
    (not_listed, "the table 'b' reads .* which is not computed before it"),
    (behind_the_last, "may lie outside of the table 'a', behind its last cell"),
    (loose_index, "depends on an index of 'classes' that is none of its own"),
    (points_nowhere, "the table 'a' points into 'classes'"),
], ids=lambda x: x.__name__ if callable(x) else "")
def test_systems_that_are_refused(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(CheckError, match=message) as caught:
        refused(make)()
    assert caught.value.repair


def test_a_name_that_a_derived_table_needs(tmp_path: Path) -> None:
    x, faster = tensor("x", time := axis("time")), tensor("mean_rate")
    count = length("valid", of=time)
    t = axis("steps", extent=count).index()
    mean = state("mean", t)
    mean[t] = x[t] + faster * mean[t - 1]
    with pytest.raises(CheckError, match="'mean_rate', and something else has this name"):
        library([Loss(mean[count - 1], tables=(mean,)).called("colliding")], tmp_path, "colliding")


def test_slips_of_the_pen() -> None:
    time, labels = axis("time"), axis("labels")
    t = time.index()
    a = state("a", t)
    with pytest.raises(DefinitionError, match="cannot be set"):
        a[t - 1] = 0
    a[t] = 1
    with pytest.raises(DefinitionError, match="cannot be set"):
        a[t] = 2
    with pytest.raises(DefinitionError, match="was read with 2"):
        a[t, t]
    with pytest.raises(DefinitionError, match="does not measure its last axis"):
        index("y", time, into=labels, length=length("n", of=labels))
    with pytest.raises(DefinitionError, match="size="):
        axis("steps", size=2 * labels)


# What callers get wrong

def test_messages_name_the_place(library: Any, rng: np.random.Generator) -> None:
    log_probs = log_softmax(rng.normal(size=(4, 2, 3)))
    good = {"log_probs": log_probs, "targets": np.array([[1, 2], [2, 1]]), "input_lengths": np.array([4, 4]),
            "target_lengths": np.array([2, 1])}
    bad = [
        ({"input_lengths": np.array([4, 5])}, IndexError, r"input_lengths\[1\] is 5, and the axis 'time' has the length 4"),
        ({"input_lengths": np.array([-1, 4])}, IndexError, r"input_lengths\[0\] is -1"),
        ({"target_lengths": np.array([2, 3])}, IndexError, r"target_lengths\[1\] is 3, and the axis 'labels' has the length 2"),
        ({"targets": np.array([[1, 3], [2, 1]])}, IndexError, r"targets\[0, 1\] is 3, and the axis 'classes' has the positions 0 to 2"),
        ({"blank": 3}, IndexError, "blank is 3, and the axis 'classes' has the positions 0 to 2"),
        ({"blank": -1}, IndexError, "blank is -1"),
        ({"input_lengths": np.array([4])}, ValueError, r"input_lengths \(1,\) does not fit"),
        ({"input_lengths": np.array([4.0, 4.0])}, TypeError, "must be an array of integers"),
        ({"targets": np.array([1, 2])}, ValueError, r"holds all samples end to end, but target_lengths \[2, 1\] add up to 3"),
    ]
    library.ctc_loss(**good)
    for change, error, message in bad:
        with pytest.raises(error, match=message):
            library.ctc_loss(**{**good, **change})
    logits = rng.normal(size=(1, 2, 2, 3))
    with pytest.raises(ValueError, match="'steps' has the length 2 and must have that of 'labels' plus 1, which is 3"):
        library.rnnt_loss(logits, np.array([[1, 2]]), [2], [2])

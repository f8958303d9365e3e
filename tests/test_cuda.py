"""The CUDA target without a GPU: every kernel runs on the CPU through cuda/shim.h, against the C target, and compiles with nvcc.

What this cannot see: the accuracy of a GPU's own functions, its memory model, and how fast anything is.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import gc
import importlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from filelock import FileLock
from shim import GXX, TYPES, Refused, ShimBackend, compile_shim, losses, narrow, partial_library, widen
from support import compile_library, write_library

from losscomp import catalogue, nvcc
from losscomp.build import build
from losscomp.check import Checked, check
from losscomp.cli import main
from losscomp.compiler import Binary
from losscomp.emit import forms_of
from losscomp.errors import BuildError
from losscomp.language import Loss, MaxOver, Sum, axis, exp, log, tensor
from losscomp.plan import Options
from losscomp.sampling import parameters, samples

FOLDER = Path(os.environ.get("LOSSLIB_SRC") or ROOT / "generated" / "src") / "losslib" / "cuda"
needs_gxx = pytest.mark.skipif(GXX is None, reason="NOT CHECKED: what the CUDA kernels compute; there is no g++ to run them on the CPU")
needs_nvcc = pytest.mark.skipif(bool(nvcc.missing()), reason="NOT CHECKED: that the CUDA kernels compile; there is no nvcc")
ULP = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
MOVED = 8                                         # by how many times what an ULP of the inputs changes two sound results may differ
ARITHMETIC = {"float32": np.float32, "float64": np.float64, "float16": np.float32, "bfloat16": np.float32}
DEFINITIONS = catalogue.load(catalogue.builtin_definitions())


@functools.cache
def variants(tables: bool = False) -> dict[str, Checked]:
    """Every variant of every loss; of those with tables, which tests/test_cuda_tables.py is about, or of the others."""
    found: dict[str, Checked] = {}
    for name, definition in DEFINITIONS.items():
        for form in (f for loss in forms_of(definition) for f in check(loss) if bool(f.tables) == tables):
            kinds = "".join("i" if t.record.integer else "r" for t in form.inputs)
            found[f"{name}-{kinds}{form.suffix}"] = form
    return found


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the kernels, for the CPU."""
    if not FOLDER.is_dir():
        pytest.fail("The library is not built, or without the target cuda: run `make`.", pytrace=False)
    with FileLock(tmp_path_factory.getbasetemp().parent / "shim.lock"):        # one worker compiles, the others find the objects
        return compile_shim(FOLDER, tmp_path_factory.mktemp("shim"))


@pytest.fixture
def backend(shim: Path) -> Iterator[ShimBackend]:
    made = ShimBackend(shim)
    yield made
    made.schedule(0)


def results(f: Any, given: dict[str, Any], form: Checked, reduction: str,
            move: Callable[[str, np.ndarray], np.ndarray] = lambda name, way: way) -> dict[str, np.ndarray]:
    """Everything that a loss gives: value, gradients, rate and Hessian-vector products, by some and by all inputs.

    Directions are multiples of a quarter, which every type holds. `move`: what becomes of the direction of an input.
    """
    found: dict[str, np.ndarray] = {"value": f(**given, reduction=reduction)}
    for suffix, tensors in {"": form.wrt, "_all": form.differentiable}.items():
        names = [t.name for t in tensors]
        if not names:
            continue
        ways = {name: move(name, direction(given[name])) for name in names}
        value, gradients = f.value_and_grad(**given, reduction=reduction, wrt=names)
        found[f"value{suffix}"] = value
        found |= {f"grad{suffix}_{k}": v for k, v in gradients._asdict().items()}
        found[f"rate{suffix}"] = f.jvp(**given, reduction=reduction, wrt=names, direction=ways)
        hvp = f.hvp(**given, reduction=reduction, wrt=names, direction=ways)
        found |= {f"hvp{suffix}_{k}": v for k, v in hvp._asdict().items()}
    return {k: np.asarray(v) for k, v in found.items()}


# Gradients are differences of two distributions here: they add up to 0, and a rate cancels while no input is near a root.
CANCELLING = {"distillation_loss", "soft_capped_cross_entropy"}


def direction(array: np.ndarray) -> np.ndarray:
    """Where an input is moved to."""
    return ((np.arange(array.size) % 7 - 3) / 4).astype(array.dtype).reshape(array.shape)


def terms(found: dict[str, np.ndarray], given: dict[str, Any], name: str) -> np.ndarray:
    """What a rate adds up, without signs: gradients of each sample times directions."""
    rate, suffix = found[name], name.removeprefix("rate")
    total = np.zeros_like(rate)
    for k, grad in found.items():
        if k.startswith(f"grad{suffix}_") and (suffix or not k.startswith("grad_all_")) and grad.shape[:rate.ndim] == rate.shape:
            each = np.abs(grad * direction(given[k.removeprefix(f"grad{suffix}_")]))
            total += np.nan_to_num(each.sum(tuple(range(rate.ndim, each.ndim))), nan=0.0, posinf=0.0)
    return total


def inputs(form: Checked, count: int, size: int, dtype: Any, storage: str = "", seed: int = 0) -> dict[str, Any]:
    """Arrays and scalars in the shape that users have them; numbers that the storage holds exactly."""
    made = samples(form, "normal", count, dtype, seed, {a.name: size for a in form.axes})
    for t in form.inputs:
        if t.record.ignore and count > 2:
            made[t.name][1] = -100
        if storage in ("float16", "bfloat16") and not t.record.integer:
            made[t.name] = widen(narrow(made[t.name], storage), storage).astype(dtype)
    return made | parameters(form)


def disagreement(mine: dict[str, np.ndarray], truth: dict[str, np.ndarray], ulp: float, tiny: float | dict[str, np.ndarray] = 0.0,
                 ) -> list[str]:
    """Where results differ by more than a few units in the last place of the largest result near them, and `tiny` more."""
    found = []
    assert mine.keys() == truth.keys()
    for name, b in truth.items():
        a = mine[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(f"{name}: {a.dtype} {a.shape}, not {b.dtype} {b.shape}")
            continue
        with np.errstate(all="ignore"):
            near = np.max(np.abs(b), axis=-1, keepdims=True, initial=0.0, where=np.isfinite(b)) if b.ndim > 1 else np.abs(b)
            more = tiny[name] if isinstance(tiny, dict) else tiny
            wrong = ~((np.abs(a - b) <= ulp * np.maximum(near, np.abs(b)) + more) | (a == b) | (np.isnan(a) & np.isnan(b)))
        if wrong.any():
            where = tuple(np.argwhere(wrong)[0])
            found.append(f"{name}{[int(k) for k in where]}: {a[where]!r}, not {b[where]!r}")
    return found


def motion(peer: Any, given: dict[str, Any], form: Checked, reduction: str, ulp: float) -> dict[str, np.ndarray]:
    """How far the results of C in float64 move where every real input and every direction moves by up to a unit in its last place.

    They are moved by far more than that, towards 0, which leaves no domain, each element by an amount of its own, and what comes of it
    is scaled down.
    """
    step, rng = ulp**0.5, np.random.default_rng(0)
    real = [t.name for t in form.inputs if not t.record.integer and t.name in given]
    wide = given | {name: given[name].astype(np.float64) for name in real}
    shrunk = lambda array: array * (1 - step * rng.uniform(0.5, 1, array.shape))
    still = results(peer, wide, form, reduction)
    found = {k: np.zeros_like(v) for k, v in still.items()}
    for moved in real:
        for there in (results(peer, wide | {moved: shrunk(wide[moved])}, form, reduction),
                      results(peer, wide, form, reduction, lambda name, way, moved=moved: shrunk(way) if name == moved else way)):
            with np.errstate(all="ignore"):
                for k, v in there.items():
                    found[k] += np.nan_to_num(np.abs(v - still[k]), nan=0.0, posinf=0.0) * ulp / step
    return found


def differences(mine: Any, peer: Any, given: dict[str, Any], form: Checked, reduction: str, dtype: Any) -> list[str]:
    """Where a call differs from C by more than rounding.

    C has elementary functions of its own and the shim has those of the system. Either is within an ULP or two, but where terms cancel,
    as in sigmoid(x) - y where they are all but equal, that is any number of ULP of what is left, of which neither is the right one.
    So what differs may differ by a few times what inputs that move by an ULP change. (Against float64, both are off by up to 2.4 times
    that where they differ, now the one by more and now the other.) The rates of losses in CANCELLING may be off by four units of what
    they add up, too.
    """
    ulp = ULP[np.dtype(dtype).name]
    made, truth = results(mine, given, form, reduction), results(peer, given, form, reduction)
    if not disagreement(made, truth, 64 * ulp):
        return []
    moved = motion(peer, given, form, reduction, ulp)
    with np.errstate(all="ignore"):
        rates = [k for k in truth if k.startswith("rate") and form.loss.name in CANCELLING]
        added = dict.fromkeys(truth, 0.0) | {k: 4 * ulp * terms(truth, given, k) for k in rates}
    return disagreement(made, truth, 64 * ulp, {k: MOVED * v + added[k] for k, v in moved.items()})


def shapes(form: Checked) -> list[tuple[int, int]]:
    """Batches and sizes of axes: none, one, odd ones, and such that several blocks have their part."""
    return [(0, 3), (1, 1), (5, 3), (150, 3), (7, 33), (3, 130)] if form.axes else [(0, 1), (1, 1), (37, 1), (1031, 1)]


@needs_gxx
@pytest.mark.parametrize("name", variants())
def test_agrees_with_c(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Value, gradient, rate and product, none and mean, in float32 and float64, at the shapes that go wrong."""
    form = variants()[name]
    loss = form.loss.name
    mine, peer = losses(backend)[loss], getattr(targets["c"], loss)
    for (count, size), dtype in itertools.product(shapes(form), (np.float32, np.float64)):
        given = inputs(form, count, size, dtype)
        for reduction in ("none", "mean"):
            found = differences(mine, peer, given, form, reduction, dtype)
            assert not found, (count, size, reduction, found)


@needs_gxx
@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", variants())
def test_half_types(name: str, storage: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Arithmetic is that of float32: results are those of float32, rounded once."""
    form = variants()[name]
    loss = form.loss.name
    backend.storage = storage
    mine, peer = losses(backend)[loss], getattr(targets["c"], loss)
    for count, size in [(5, 3), (7, 33)] if form.axes else [(37, 1), (1031, 1)]:
        given = inputs(form, count, size, np.float32, storage)
        truth = results(peer, given, form, "none")
        shared = {t.name for t in form.inputs if not t.record.per_sample}
        with np.errstate(all="ignore"):
            rounded = {k: v if k.rpartition("_")[2] in shared else widen(narrow(v, storage), storage).reshape(v.shape).astype(np.float32)
                       for k, v in truth.items()}
        directions_round = 4.0                                    # directions are rounded to the storage, too
        found = disagreement(results(mine, given, form, "none"), rounded, directions_round * ULP[storage], 2.0**-22)
        assert not found, (count, size, found)


@needs_gxx
@pytest.mark.parametrize("name", variants())
def test_no_schedule_matters(name: str, backend: ShimBackend) -> None:
    """Threads and blocks forward, backward and at random, for each size of team: the same bits."""
    form = variants()[name]
    f = losses(backend)[form.loss.name]
    for team, dtype in itertools.product((0, 4, 32, 64) if form.axes else (0,), (np.float32, np.float64)):
        backend.team = team
        given = inputs(form, 9 if form.axes else 700, 70, dtype)
        seen = []
        for schedule in (0, 1, 2):
            backend.schedule(schedule, 7)
            seen.append(results(f, given, form, "mean"))
        for other in seen[1:]:
            for k, v in seen[0].items():
                assert v.tobytes() == other[k].tobytes(), (k, team, dtype)


@needs_gxx
@pytest.mark.parametrize("name", variants())
def test_strides_and_broadcasting(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Transposed, reversed, unaligned and broadcast inputs, with dimensions behind the axis."""
    form = variants()[name]
    loss = form.loss.name
    mine, peer = losses(backend)[loss], getattr(targets["c"], loss)
    flat = inputs(form, 24, 5, np.float32)
    for team in (0, 1, 8):
        backend.team = team
        for layout in ("grid", "reversed", "one", "shifted", "gap", "spread"):
            given = {k: arrange(form, k, v, layout) for k, v in flat.items()}
            found = differences(mine, peer, given, form, "none", np.float32)
            assert not found, (team, layout, found)


def arrange(form: Checked, name: str, value: Any, layout: str) -> Any:
    """An input of 24 samples, with the axis where users have it, in a layout that is not the usual one."""
    tensor = next((t for t in form.inputs if t.name == name), None)
    if tensor is None or not tensor.record.per_sample:
        return value if tensor is None else np.repeat(value, 2)[::2]
    array = np.asarray(value)
    if layout == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    if layout == "shifted":
        room = np.empty(array.size + 1, array.dtype)
        room[1:] = array.ravel()
        return room[1:].reshape(array.shape)
    if layout == "one" and tensor is not form.inputs[0]:
        return np.broadcast_to(array[:1], array.shape)
    if layout in ("gap", "spread"):                       # 4 of rows of 6, each behind the other at a distance; every other number
        room = np.empty((4, 12, *array.shape[1:]), array.dtype)
        place = np.s_[:, :6] if layout == "gap" else np.s_[:, ::2]
        room[place] = array.reshape(4, 6, *array.shape[1:])
        array = room[place]
    if layout in ("gap", "spread", "grid"):
        array = array if layout != "grid" else array.reshape(4, 6, *array.shape[1:])
        for axis in (a for a in tensor.record.axes if a.record.position != -1):
            array = np.moveaxis(array, 2, axis.record.position)
        return np.asfortranarray(array) if layout == "grid" else array
    return array


@needs_gxx
def test_every_kernel_is_found_and_run(backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Names, arguments and their order are those of the C target, and the tests above reach every kernel."""
    lib = targets["c"]._backend
    named = {form.loss.name for form in variants().values()}
    emitted = sum(path.read_text().count("_signature, ") for path in FOLDER.glob("*.cu") if path.stem in named) // 2
    seen = set()
    for form in variants().values():
        f = losses(backend)[form.loss.name]
        results(f, inputs(form, 3, 3, np.float32), form, "mean")
    for name in backend.used:
        loss, _, kernel = name.partition(".")
        peer = lib.find(loss, kernel, 4)
        names = list(backend.names("argument_name", backend.function("find")(name.encode(), 0)))
        assert names == [lib_name(peer, k) for k in range(len(names))] and not lib_name(peer, len(names))
        seen.add(name)
    assert len(seen) == emitted
    assert backend.function("find")(b"huber_loss.no_such", 0) == backend.ffi.NULL


def lib_name(kernel: Any, k: int) -> str:
    """What the C library calls an argument."""
    from losslib.c._native import ffi, lib

    name = lib.losslib_argument_name(kernel, k)
    return str(ffi.string(name).decode()) if name != ffi.NULL else ""


def odd_losses() -> dict[str, Loss]:
    """What no loss of the catalogue has: shared scalars and matrices with a gradient, loops in loops, several axes."""
    classes, features = axis("classes"), axis("features")
    c, f = classes.index(), features.index()
    x, y, u = tensor("x", classes), tensor("y", features), tensor("u")
    m, s = tensor("m", classes, features, per_sample=False), tensor("s", per_sample=False)
    return {name: loss.called(name, doc=name) for name, loss in {
        "bilinear": Loss(Sum(x[c] * Sum(m[c, f] * y[f], f), c)),
        "shared": Loss(s * u**2),
        "grid": Loss(Sum(Sum(x[c] * y[f], c)**2, f) * s),
        "top": Loss(log(Sum(exp(x[c] * MaxOver(m[c, f], f)), c))),
    }.items()}


@needs_gxx
def test_loop_nests_of_every_shape(tmp_path: Path) -> None:
    src = write_library(list(odd_losses().values()), tmp_path, "odd")
    compile_library(src, "odd", ["-O0"])
    backend = ShimBackend(compile_shim(src / "odd" / "cuda", tmp_path / "shim"), "odd")
    sys.path.insert(0, str(src))
    try:
        peer = importlib.import_module("odd.c")
        mine = losses(backend, "odd")
    finally:
        sys.path.remove(str(src))
    rng = np.random.default_rng(0)
    for name, loss in odd_losses().items():
        form = check(loss)[0]
        for team, (count, classes, features) in itertools.product((0, 2, 64), ((5, 3, 4), (70, 33, 2), (0, 3, 2), (300, 3, 1))):
            backend.team = team
            sizes = {"classes": classes, "features": features}
            given = {t.name: rng.normal(size=((count,) if t.record.per_sample else ()) + tuple(sizes[a.name] for a in t.record.axes))
                     for t in form.inputs}
            for reduction in ("none", "mean"):
                truth = results(getattr(peer, name), given, form, reduction)
                found = disagreement(results(mine[name], given, form, reduction), truth, 4096 * ULP["float64"])
                assert not found, (name, team, count, found)


# What is refused, and what passes through

@needs_gxx
@pytest.mark.parametrize("name", [n for n, f in variants().items() if any(t.record.into for t in f.inputs)])
@pytest.mark.parametrize("bad", [-1, 3, 2**40, -2**62])
def test_an_index_out_of_range_ends_the_launch(name: str, bad: int, backend: ShimBackend, capfd: pytest.CaptureFixture[str]) -> None:
    form = variants()[name]
    f = losses(backend)[form.loss.name]
    given = inputs(form, 5, 3, np.float32)
    tensor = next(t.name for t in form.inputs if t.record.into)
    given[tensor][-1] = bad
    for call in (f, f.value_and_grad):
        with pytest.raises(Refused, match="1719"):
            call(**given, reduction="mean")
    assert f"the index {bad} is outside [0, 3)" in capfd.readouterr().out
    given[tensor][-1] = 0
    assert np.isfinite(f(**given, reduction="mean"))


@needs_gxx
@pytest.mark.parametrize("name", [n for n, f in variants().items() if any(t.record.domain.bounded for t in f.inputs)])
def test_a_value_outside_its_domain_ends_the_launch(name: str, backend: ShimBackend, capfd: pytest.CaptureFixture[str]) -> None:
    form = variants()[name]
    f = losses(backend)[form.loss.name]
    for bounded in (t for t in form.inputs if t.record.domain.bounded):
        given = inputs(form, 300, 3, np.float32)
        low, high, _ = bounded.record.domain.interval
        given[bounded.name][-1] = high + 1 if np.isfinite(high) else low - 1
        with pytest.raises(Refused, match="1719"):
            f(**given)
        assert f"{bounded.name}: the value" in capfd.readouterr().out


@needs_gxx
@pytest.mark.parametrize("name", variants())
def test_not_a_number_passes_through(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    form = variants()[name]
    f, peer = losses(backend)[form.loss.name], getattr(targets["c"], form.loss.name)
    given = inputs(form, 5, 3, np.float32)
    given[first_real(form)][2] = np.nan
    for reduction in ("none", "mean"):
        found = differences(f, peer, given, form, reduction, np.float32)
        assert not found, found


def first_real(form: Checked) -> str:
    """The first input that can be NaN: labels cannot, which come first in some losses."""
    return next(t.name for t in form.inputs if not t.record.integer)


# The driver

class Raw:
    """A call of huber_loss.value_and_grad, filled in by hand."""

    def __init__(self, backend: ShimBackend, count: int = 10, storage: str = "float32", name: str = "huber_loss.value_and_grad") -> None:
        self.backend = backend
        self.kernel = backend.function("find")(name.encode(), TYPES[storage])
        self.call = backend.ffi.new("losslib_call *")
        self.call.ndim, self.call.shape[0], self.call.params[0] = 1, count, 1.0
        self.arrays: dict[int, np.ndarray] = {}

    def point(self, k: int, array: np.ndarray, stride: int = 1) -> None:
        self.arrays[k] = array
        self.call.data[k] = self.backend.ffi.cast("void *", array.__array_interface__["data"][0])
        self.call.strides[k][0] = stride

    def run(self, scale_type: int = 0) -> int:
        room = np.zeros(self.backend.function("workspace")(self.kernel, self.call), np.uint8)
        data = self.backend.ffi.from_buffer(room) if room.size else self.backend.ffi.NULL
        return int(self.backend.function("compute")(self.kernel, self.call, scale_type, data, self.backend.ffi.NULL))


def raw(backend: ShimBackend, count: int = 10, storage: str = "float32") -> Raw:
    made = Raw(backend, count, storage)
    kind = np.float16 if storage == "float16" else np.dtype(storage)
    made.point(0, np.linspace(-3, 3, count).astype(kind))
    made.point(1, np.zeros(count, kind))
    made.point(2, np.ones(1, kind), 0)
    return made


@needs_gxx
def test_what_is_null_is_not_computed(backend: ShimBackend) -> None:
    """Every set of outputs; a scale that is not given is 1."""
    x = np.linspace(-3, 3, 10).astype(np.float32)
    truth = {4: np.where(np.abs(x) < 1, x * x / 2, np.abs(x) - 0.5), 6: np.clip(x, -1, 1)}
    for wanted in itertools.chain.from_iterable(itertools.combinations((4, 5, 6), k) for k in range(4)):
        call = raw(backend)
        for k in wanted:
            call.point(k, np.full(1 if k == 5 else 10, np.nan, np.float64 if k == 5 else np.float32))
        assert call.run() == 0
        for k in wanted:
            np.testing.assert_allclose(call.arrays[k], truth[4].sum() if k == 5 else truth[k], rtol=1e-6)


@needs_gxx
def test_scales_in_the_type_of_arithmetic(backend: ShimBackend) -> None:
    """A scale of 1e-9 is 0 in float16 and is none in float32: one for all, and one a sample."""
    for scale, stride in ((np.array([2e-9], np.float32), 0), (np.linspace(1, 3, 40, dtype=np.float32), 1)):
        call = raw(backend, 40, "float16")
        call.arrays[0][...] = (call.arrays[0] * 1000).astype(np.float16)
        call.call.params[0] = 1e5
        call.point(3, scale, stride)
        call.point(6, np.full(40, np.nan, np.float16))
        assert call.run(TYPES["float32"]) == 0
        np.testing.assert_array_equal(call.arrays[6], (call.arrays[0].astype(np.float32) * scale).astype(np.float16))


@needs_gxx
def test_bad_calls_are_refused(backend: ShimBackend) -> None:
    for spoil, status in (("call.ndim = 13", 3), ("call.ndim = -1", 3), ("call.shape[0] = -1", 3), ("call.data[0] = NULL", 3),
                          ("call.threads = 3", 3), ("call.threads = -1", 3), ("call.params[0] = -1", 2), ("", 0)):
        call = raw(backend)
        exec(spoil, {"call": call.call, "NULL": backend.ffi.NULL})
        assert call.run() == status, spoil
    for storage, scale, status in (("float32", "float64", 3), ("float64", "float32", 3), ("float16", "bfloat16", 3),
                                   ("float16", "float32", 0)):
        assert raw(backend, 3, storage).run(TYPES[scale]) == status
    call = raw(backend, 5000)
    call.point(5, np.zeros(1))
    assert backend.function("workspace")(call.kernel, call.call) > 0
    assert backend.function("compute")(call.kernel, call.call, 0, backend.ffi.NULL, backend.ffi.NULL) == 3


@needs_gxx
@pytest.mark.parametrize("storage", ["float32", "float64", "float16"])
def test_totals_become_values_and_scales_on_the_device(storage: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    from losslib.reductions import REDUCTIONS

    rng, ffi = np.random.default_rng(3), backend.ffi
    real = np.dtype(storage)
    wide = np.float64 if storage == "float64" else np.float32
    for number, (name, formula) in enumerate(REDUCTIONS.items(), 1):
        numbers = rng.uniform(1, 9, 6)
        total, weight, total_rate, weight_rate, count, batch = numbers
        given = np.array([numbers[k] for k in range(4)])
        at = [ffi.cast("double *", given.__array_interface__["data"][0] + 8 * k) for k in range(4)]
        totals = ffi.new("losslib_totals *", [*at, 0.0, count, batch])
        upstream = np.array([0.75], real)
        out = {k: np.zeros(1, real) for k in ("value", "rate")}
        out |= {k: np.zeros(1, wide) for k in ("scale", "scale_weight", "scale_rate", "scale_weight_rate")}
        finished = ffi.new("losslib_finished *", {k: ffi.cast("void *", v.__array_interface__["data"][0]) for k, v in out.items()})
        pointer = ffi.cast("void *", upstream.__array_interface__["data"][0])
        assert backend.function("finish")(number, TYPES[storage], totals, pointer, finished, ffi.NULL) == 0
        four = (total, weight, count, batch)
        rates = (*four, total_rate, weight_rate)
        truth = {"value": formula.value(*four), "rate": formula.rate(*rates),
                 "scale": 0.75 * formula.by_total(*four), "scale_weight": 0.75 * formula.by_weight(*four),
                 "scale_rate": 0.75 * formula.by_total_rate(*rates), "scale_weight_rate": 0.75 * formula.by_weight_rate(*rates)}
        for k, expected in truth.items():
            np.testing.assert_allclose(out[k][0], out[k].dtype.type(expected), rtol=2 * np.finfo(out[k].dtype).eps, err_msg=f"{name} {k}")
        empty = ffi.new("losslib_totals *", [ffi.NULL] * 4 + [4.0, 4.0, 2.0])
        assert backend.function("finish")(number, TYPES[storage], empty, ffi.NULL, finished, ffi.NULL) == 0
        np.testing.assert_allclose(out["scale"][0], formula.by_total(0.0, 4.0, 4.0, 2.0), rtol=1e-3)


# Sanitizers

PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:4]
import numpy as np
from pathlib import Path
from test_cuda import variants, inputs, results
from shim import Refused, ShimBackend, losses
calls = 0
for name, form in variants().items():
    if form.loss.name in sys.argv[5:]:
        backend = ShimBackend(Path(sys.argv[4]))
        f = losses(backend)[form.loss.name]
        for team in (0, 64):
            for storage in ("float32", "float64", "float16"):
                backend.storage, backend.team = storage, team
                for count, size in ((0, 3), (1, 1), (5, 7), (70, 3), (2, 130)):
                    given = inputs(form, count, size, np.float64 if storage == "float64" else np.float32)
                    results(f, {k: v if np.ndim(v) < 2 else np.asfortranarray(v) for k, v in given.items()}, form, "mean")
                    calls += 1
        for t in (t for t in form.inputs if t.record.into):
            for bad in (-1, 3, 2**40, -2**62):
                given = inputs(form, 5, 3, np.float32)
                given[t.name][-1] = bad
                try:
                    f(**given)
                except Refused:
                    calls += 1
                else:
                    raise SystemExit(f"{name} took the index {bad}")
print("calls", calls)
"""
SANITIZED = ("huber_loss", "nll_loss", "multilabel_soft_margin_loss")


@needs_gxx
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    runtime = subprocess.run([str(GXX), "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("NOT CHECKED: CUDA kernels under sanitizers; this compiler has no libasan.so")
    flags = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    made = compile_shim(partial_library(FOLDER, tmp_path / "src", SANITIZED), tmp_path / "out", flags)
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ROOT), str(ROOT / "tests"), str(FOLDER.parent.parent), str(made), *SANITIZED],
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[-1]) > 80


# Faults that are put into the kernels must be seen

ROW, WIDE, POINT, UNIT, SQUARE = "nll_loss", "cosine_embedding_loss", "huber_loss", "binary_cross_entropy", "mse_loss"
FAULTS = {
    "no barrier": (WIDE, "device.cuh", "    __syncthreads();\n    mine.take(warps[turn][0]);", "    mine.take(warps[turn][0]);"),
    "no turns": (WIDE, "device.cuh", "turn ^= 1;", ""),
    "one warp only": (WIDE, "device.cuh", "for (int k = 1; k < WARPS; ++k) {", "for (int k = 1; k < 1; ++k) {"),
    "half of the lanes": (WIDE, "device.cuh", "apart < size; apart *= 2", "apart < size / 2; apart *= 2"),
    "the wrong lane": (WIDE, "device.cuh", "__shfl_xor_sync(mask, sum, apart)", "__shfl_xor_sync(mask, sum, 1)"),
    "the mask of others": (WIDE, "device.cuh", "((1u << size) - 1) << within", "((1u << size) - 1)"),
    "a divergent join": (WIDE, "device.cuh", "if (size <= WARP) return join_lanes",
                         "if (lane == 0 && size > 1) return mine;\n        if (size <= WARP) return join_lanes"),
    "every lane leads": (WIDE, "device.cuh", "leads = lane == 0;", "leads = true;"),
    "rows twice": (ROW, "device.cuh", "threadIdx.x / size;", "threadIdx.x / size / 2;"),
    "no tail": (POINT, "device.cuh", "here.has(j) ? j : 0", "0"),
    "a tail too far": (POINT, "device.cuh", "run.about.samples - first_ < WIDTH ?", "false ?"),
    "null is written": (POINT, "device.cuh", "if (run.arguments[k].data == NULL) return;", ""),
    "a null row is written": (ROW, "device.cuh", "if (wanted) data[i", "data[i"),
    "slices are not cleared": (ROW, "device.cuh", "accumulator<real>().keep(data + 2 * (a * rest + b));", ";"),
    "cells of others": (ROW, "device.cuh", "team.first * run.about.cells", "0 * run.about.cells"),
    "the first stride": (POINT, "device.cuh", "within * run.arguments[k].strides[d]", "within * run.arguments[k].strides[0]"),
    "no axis stride": (ROW, "device.cuh", "data[i * step[0] + j", "data[i + j"),
    "no index check": (ROW, "device.cuh", "if ((index < 0 || index >= limit) && index != ignore)", "if (false)"),
    "an index one too large": (ROW, "device.cuh", "index >= limit) && index != ignore", "index > limit) && index != ignore"),
    "no domain": (UNIT, "device.cuh", "if (value < low || value > high", "if (value < low"),
    "bfloat16 is cut off": (POINT, "device.cuh", "(bits + 0x7fff + (bits >> 16 & 1)) >> 16", "bits >> 16"),
    "part of the parts": (POINT, "cuda.cu", "part < left.parts; part += THREADS", "part < 1; part += THREADS"),
    "partial sums overlap": (ROW, "device.cuh", "(int64_t)slot * gridDim.x + blockIdx.x", "(int64_t)slot + blockIdx.x"),
    "strided packs": (POINT, "cuda.cu", "a.strides[0] != 1 || ", ""),
    "dimensions that do not follow each other": (POINT, "cuda.cu",
                                                 "== call->strides[from[k]][d] * size;",
                                                 ">= call->strides[from[k]][d] * size;"),
    "no carry": (SQUARE, "device.cuh", "carry += (sum - (both - back)) + (x - back);", "(void)back;"),
    "a stale direction": (POINT, ".cu", "direction_input_pack.at[nth]", "input_pack.at[nth]"),
}


def lost_carries(f: Any) -> list[str]:
    """Sums of doubles that cancel: of each thread, of lanes and of blocks."""
    found = []
    for count in (3, 100, 2000):
        x = np.zeros(count)
        x[[0, count // 2, -1]] = 1e16, 1, -1e16
        rate = f.jvp(x, np.zeros(count), reduction="sum", direction={"input": np.ones(count)})
        found += [f"the sum of {count} numbers is {rate}, not 2"] * int(rate != 2)
    return found


@needs_gxx
def test_sums_of_doubles_keep_their_error(backend: ShimBackend) -> None:
    assert not lost_carries(losses(backend)[SQUARE])


def complaints(backend: ShimBackend, name: str, peer: Any) -> list[str]:
    """What tests like those above say of one loss, in short."""
    found: list[str] = lost_carries(losses(backend)[name]) if name == SQUARE else []
    for form in (f for f in variants().values() if f.loss.name == name):
        f, loss = losses(backend)[name], getattr(peer, name)
        for dtype, team, (count, size) in itertools.product(
                (np.float32, np.float64), (0, 8, 64) if form.axes else (0,), ((5, 3), (40, 7), (6, 70)) if form.axes else ((1031, 1),)):
            backend.team = team
            given = inputs(form, count, size, dtype)
            seen = []
            for schedule in (0, 2):
                backend.schedule(schedule, 5)
                seen.append(results(f, given, form, "mean"))
                found += differences(f, loss, given, form, "mean", dtype)
            found += [f"{k} depends on the schedule" for k, v in seen[0].items() if v.tobytes() != seen[1][k].tobytes()]
        backend.team = 0
        plain = inputs(form, 24, 5, np.float32)
        for layout in ("plain", "shifted", "grid", "reversed", "gap", "spread"):
            given = {k: arrange(form, k, v, layout) for k, v in plain.items()}
            found += differences(f, loss, given, form, "none", np.float32)
        first = first_real(form)
        given = plain | {first: plain[first].copy()}
        given[first].flat[1::4] = np.nan
        found += differences(f, loss, given, form, "none", np.float32)
        backend.storage = "bfloat16"
        given = inputs(form, 37, 3, np.float32, "bfloat16")
        value = loss(**given, reduction="none")
        if value.dtype == np.float32 and not (f(**given, reduction="none") == widen(narrow(value, "bfloat16"), "bfloat16")).mean() > 0.9:
            found.append("bfloat16 is not rounded to nearest")
        backend.storage = "float32"
        if any(t.record.into for t in form.inputs):
            for bad in (3, -1):
                given = inputs(form, 5, 3, np.float32)
                given[next(t.name for t in form.inputs if t.record.into)][-1] = bad
                found += refusal(f, given)
        for bounded in (t for t in form.inputs if t.record.domain.bounded):
            given = inputs(form, 5, 3, np.float32)
            given[bounded.name][-1] = 2
            found += refusal(f, given)
    return found


def refusal(f: Any, given: dict[str, Any]) -> list[str]:
    """A complaint if a loss takes what it must refuse."""
    try:
        f(**given)
    except Refused:
        return []
    return ["what must be refused is taken"]


def in_a_child(said: Callable[[], list[str]]) -> str:
    """The complaints of a process of its own, which a fault may kill."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            faulthandler.disable()
            signal.setitimer(signal.ITIMER_VIRTUAL, 100)                 # of the processor: other work may slow it down
            signal.alarm(300)                                            # where it waits for nothing
            with np.errstate(all="ignore"):
                text = "; ".join(said()[:3])
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return text or (f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "")


def faulty(tmp_path: Path, name: str, change: tuple[str, str, str] | None) -> Path:
    """One loss and its driver, with a change in the text, compiled for the CPU."""
    folder = partial_library(FOLDER, tmp_path / "src", (name,))
    if change:
        suffix, old, new = change
        path = next(p for p in folder.iterdir() if p.name.endswith(suffix))
        text = path.read_text()
        assert old in text, "the fault has no place any more"
        path.write_text(text.replace(old, new))
    return compile_shim(folder, tmp_path / "out", ["-O0", "-Wno-error"], cached=False)


@needs_gxx
@pytest.mark.parametrize("name", ["huber_loss", "nll_loss", "cosine_embedding_loss", "binary_cross_entropy"])
def test_kernels_without_a_fault_pass(name: str, tmp_path: Path, targets: dict[str, Any]) -> None:
    made = faulty(tmp_path, name, None)
    assert in_a_child(lambda: complaints(ShimBackend(made), name, targets["c"])) == ""


@needs_gxx
def test_a_library_outlives_another(tmp_path: Path) -> None:
    """Libraries of kernels share nothing: one that is unloaded takes no thread of the other's with it."""
    one = faulty(tmp_path / "one", POINT, None)
    other = faulty(tmp_path / "other", POINT, None)
    x = np.ones(99, np.float32)

    def said() -> list[str]:
        first = ShimBackend(one)
        first.schedule(0)                                                # its state is there before that of the other
        found = [float(losses(ShimBackend(other))[POINT](x, x, reduction="mean"))]
        gc.collect()
        loaded = str(other) in Path("/proc/self/maps").read_text()
        found.append(float(losses(first)[POINT](x, x, reduction="mean")))
        return ["it is not unloaded"] * loaded + [f"{v}, not 0" for v in found if v != 0]

    assert in_a_child(said) == ""


@needs_gxx
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_kernels_are_seen(fault: str, tmp_path: Path, targets: dict[str, Any]) -> None:
    name, *change = FAULTS[fault]
    made = faulty(tmp_path, name, (change[0], change[1], change[2]))
    said = in_a_child(lambda: complaints(ShimBackend(made), name, targets["c"]))
    assert said, "nobody sees this fault"
    print(said)


# The compiler of GPUs

def representative() -> tuple[str, ...]:
    """One loss whose kernels are pointwise, and one with rows, an index and an output that samples share."""
    return POINT, ROW


@needs_nvcc
def test_nvcc_compiles_the_kernels(tmp_path: Path) -> None:
    """Two losses and the driver for one architecture; no warning, no register spilled. `-m slow` compiles all for all."""
    found = nvcc.find()
    assert found
    said: list[str] = []
    folder = partial_library(FOLDER, tmp_path / "src", representative())
    made = nvcc.compile_library(found, folder, tmp_path / "out", "_cuda.so", 2, said.append, ["sm_90"])
    library = ctypes.CDLL(str(made.path))
    library.losslib_cuda_find.restype = ctypes.c_void_p
    names = [f"{POINT}.value", f"{POINT}.hvp_all", f"{ROW}.weight", f"{ROW}.value_and_grad"]
    assert all(library.losslib_cuda_find(name.encode(), k) for name in names for k in range(4))
    assert not library.losslib_cuda_find(b"no.such", 0) and not library.losslib_cuda_find(names[0].encode(), 4)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvcc.ARCHITECTURES)
def test_nvcc_compiles_every_kernel(architecture: str, tmp_path: Path) -> None:
    found = nvcc.find()
    assert found
    nvcc.compile_library(found, FOLDER, tmp_path, "_cuda.so", 2, print, [architecture])


@needs_nvcc
def test_a_spill_and_a_warning_are_errors(tmp_path: Path) -> None:
    found = nvcc.find()
    assert found
    unused = "__global__ void kernel(float *x) { int unused; *x = 1; }\n"
    spilling = ("__global__ void __launch_bounds__(1024, 2) kernel(double *x)\n{\n    double a[64];\n#pragma unroll\n"
                "    for (int k = 0; k < 64; ++k) a[k] = x[k * threadIdx.x];\n    __syncthreads();\n#pragma unroll\n"
                "    for (int k = 0; k < 64; ++k) x[k + threadIdx.x] = a[k] * a[63 - k];\n}\n")
    for text in (unused, spilling):
        (tmp_path / "one.cu").write_text(text)
        with pytest.raises(BuildError, match=r"cannot compile one\.cu"):
            nvcc.compile_object(found, tmp_path / "one.cu", tmp_path / "one.o", ["sm_90"], print)


def test_a_chosen_compiler_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no_such_nvcc")
    with pytest.raises(BuildError, match="NVCC is"):
        nvcc.find()
    monkeypatch.delenv("NVCC")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(nvcc, "PLACES", ())
    assert nvcc.find() is None and "Get it: install the CUDA toolkit" in nvcc.missing()


# On demand only

@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A compiler that takes no time; what it was asked to compile."""
    asked: list[str] = []

    def compile_library(found: nvcc.Nvcc, folder: Path, out: Path, name: str, jobs: int, say: Any) -> Binary:
        asked.append(" ".join(sorted(p.name for p in folder.glob("*.cu"))))
        out.mkdir(parents=True)
        (out / name).write_text(f"{found.version}: {(folder / 'square.cu').read_text()}")
        return Binary(out / name, ("square",), 0)

    monkeypatch.setattr(nvcc, "find", lambda: nvcc.Nvcc("nvcc", "release 1"))
    monkeypatch.setattr(nvcc, "compile_library", compile_library)
    return asked


def write_square(folder: Path, formula: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "square.py").write_text('"""A square."""\n\nfrom losscomp.language import Loss, tensor\n\n'
                                      f'x = tensor("x")\nsquare = Loss({formula})\n')


def test_the_kernels_are_compiled_on_demand(tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    defs, out = tmp_path / "defs", tmp_path / "out"
    write_square(defs, "x**2")
    plain = Options(defs, out, "tiny", ("numpy", "cuda"))
    made = out / "src/tiny/cuda/_cuda.so"
    assert not build(plain).linked and (out / "src/tiny/cuda/square.cu").exists() and not made.exists() and not pretended
    report = build(replace(plain, cuda=True))
    assert report.linked and report.compiled == ("square",) and made.exists() and pretended == ["square.cu tiny_cuda.cu"]
    assert build(replace(plain, cuda=True)).idle and build(plain).idle and made.exists()
    made.unlink()
    assert build(replace(plain, cuda=True)).linked and made.exists()
    monkeypatch.setattr(nvcc, "find", lambda: nvcc.Nvcc("nvcc", "release 2"))
    assert build(plain).idle                                              # nobody asks which compiler it was
    assert build(replace(plain, cuda=True)).linked and made.read_text().startswith("release 2")
    write_square(defs, "x**2 + x")
    assert not build(plain).linked and not made.exists()                  # it would not be what the sources say
    assert build(replace(plain, cuda=True)).linked and made.exists()
    assert not build(Options(defs, out, "tiny", ("numpy",))).linked and not made.parent.exists()


def test_without_nvcc_the_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(nvcc, "find", lambda: None)
    write_square(tmp_path / "defs", "x**2")
    common = ["build", str(tmp_path / "defs"), "--out", str(tmp_path / "out"), "--name", "tiny"]
    for more in (["--targets", "numpy,cuda"], ["--targets", "cuda"]):
        assert main([*common, *more]) == 0
        said = capsys.readouterr().err
        assert "tiny.cuda is not compiled" in said and "install the CUDA toolkit" in said
    assert main([*common, "--no-compile"]) == 0
    assert "CUDA" not in capsys.readouterr().err


def test_show_prints_the_kernel_that_does_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", POINT, "--target", "cuda", "--stage", "emit", "--kernel", "value"]) == 0
    said = capsys.readouterr().out
    assert "__global__" in said and " value_and_grad_all(" in said and "jvp" not in said


def test_no_torch_and_no_python_in_the_sources() -> None:
    for path in FOLDER.glob("*.*"):
        if path.suffix != ".so":
            included = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("#include")]
            plain = {f"<{name}.h>" for name in ("float", "math", "stddef", "stdint", "stdio", "string")}
            assert all(name in plain or name.startswith('"losslib_') for name in included), (path, included)

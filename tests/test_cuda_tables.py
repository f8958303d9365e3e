"""The CUDA target of losses with tables, without a GPU: the kernels run on the CPU through cuda/shim.h, against the C target.

The losses are those of the catalogue that have tables, and one with what none of them has. C is asked in float64 for all types: tables
are computed in double whatever arrays hold. What this cannot see is what tests/test_cuda.py cannot.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shim import FLAGS, GXX, Refused, ShimBackend, compile_shim, losses, narrow, widen
from support import COMPILER, compile_library, load_library, write_emitted
from test_cuda import FOLDER, ULP, in_a_child, lib_name, needs_gxx, needs_nvcc, partial_library, results, variants
from test_cuda import shim as shim

from losscomp import emit, family, nvcc
from losscomp.check import Checked, check
from losscomp.language import LogAddExp, Loss, Max, axis, index, length, oo, state, tensor
from losscomp.sampling import as_given, parameters, samples

TABLES = {name: form for name, form in variants(tables=True).items() if form.tables}
SHAPES = [(0, 3), (1, 1), (5, 4), (3, 9), (2, 40)]


@pytest.fixture
def backend(shim: Path) -> Iterator[ShimBackend]:
    made = ShimBackend(shim)
    yield made
    made.schedule(0)


@pytest.fixture(scope="module")
def logarithms(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The C target as these kernels compute: all in logarithms, and not some gradients in masses, which are made of other roundings."""
    if COMPILER is None:
        pytest.skip("NOT CHECKED: the CUDA kernels of tables beside C: there is no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "mass_kernel", lambda compiled, formula: None)
        made = {form.loss.name: emit.emit_loss(form.loss, "logarithms", "test") for form in TABLES.values()}
    return load_library(write_emitted(list(made.values()), tmp_path_factory.mktemp("logarithms"), "logarithms"), "logarithms")["c"]


def arrays(form: Checked, count: int, size: int, dtype: Any, storage: str = "", seed: int = 0) -> dict[str, Any]:
    """Arrays in the layout of kernels; numbers that the storage holds exactly."""
    made = samples(form, "normal", count, dtype, seed, {a.name: size for a in form.axes})
    if storage in ("float16", "bfloat16"):
        made |= {k: widen(narrow(v, storage), storage).astype(dtype) for k, v in made.items() if v.dtype.kind == "f"}
    return made


def given(form: Checked, made: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What callers pass."""
    return as_given(form, made) | parameters(form) | more


def wide(call: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64."""
    return {k: v.astype(np.float64) if getattr(v, "dtype", None) == np.float32 else v for k, v in call.items()}


def disagreement(mine: dict[str, np.ndarray], truth: dict[str, np.ndarray], ulp: float, tiny: float = 0.0) -> list[str]:
    """Where results differ by more than a few units in the last place of the largest that a call has given: cells are sums of what
    others push, whose order is not that of C."""
    assert mine.keys() == truth.keys()
    found = []
    for name, b in truth.items():
        a = mine[name]
        with np.errstate(all="ignore"):
            near = np.max(np.abs(b), initial=0.0, where=np.isfinite(b))
            wrong = ~((np.abs(a - b) <= ulp * max(near, 1e-3) + tiny) | (a == b) | (np.isnan(a) & np.isnan(b)))
        if a.shape != b.shape or wrong.any():
            found.append(f"{name} {a.shape} {b.shape}" if a.shape != b.shape else f"{name}: {a[wrong][:3]}, not {b[wrong][:3]}")
    return found


def compared(mine: Any, peer: Any, form: Checked, call: dict[str, Any], reduction: str, storage: str) -> list[str]:
    """How a call differs from C."""
    some, all_of_it = results(mine, call, form, reduction), results(peer, wide(call), form, reduction)
    return disagreement(some, all_of_it, (8 if "16" in storage else 64) * ULP[storage], 2.0**-22 if "16" in storage else 0.0)


@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_agrees_with_c(name: str, backend: ShimBackend, logarithms: Any) -> None:
    """Every result in the four types, at ragged lengths, for each size of team."""
    form = TABLES[name]
    mine, peer = losses(backend)[form.loss.name], getattr(logarithms, form.loss.name)
    for storage, (count, size) in itertools.product(ULP, SHAPES):
        dtype = np.float64 if storage == "float64" else np.float32
        backend.storage, backend.team = storage, {5: 8, 3: 32, 2: 64}.get(count, 0)
        call = given(form, arrays(form, count, size, dtype, storage))
        for reduction in ("none", "mean") if "16" not in storage else ("none",):
            found = compared(mine, peer, form, call, reduction, storage)
            assert not found, (storage, count, size, reduction, found)


@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_no_schedule_matters(name: str, backend: ShimBackend) -> None:
    """Threads and blocks forward, backward and at random: the same bits. A meeting of threads that is missing shows here."""
    form = TABLES[name]
    f = losses(backend)[form.loss.name]
    for team, dtype in itertools.product((4, 32, 64), (np.float32, np.float64)):
        backend.team = team
        call = given(form, arrays(form, 5, 37 if team == 64 else 9, dtype))
        seen = []
        for schedule in (0, 1, 2):
            backend.schedule(schedule, 7)
            seen.append(results(f, call, form, "mean"))
        for other in seen[1:]:
            for k, v in seen[0].items():
                assert v.tobytes() == other[k].tobytes(), (k, team, dtype)


def lengths_of(form: Checked, made: dict[str, Any]) -> dict[str, np.ndarray]:
    """How much of each axis belongs to each sample."""
    return {t.record.measures.name: made[t.name] for t in form.inputs if t.record.measures is not None}


def behind(form: Checked, made: dict[str, Any], name: str) -> np.ndarray:
    """Where an input lies behind the length of its sample."""
    record = next(t.record for t in form.inputs if t.name == name)
    where = np.zeros(made[name].shape, bool)
    for k, a in enumerate(record.axes if record.per_sample else ()):
        if a.name in lengths_of(form, made):
            position = np.arange(made[name].shape[k + 1]).reshape(-1, *[1] * (made[name].ndim - k - 2))
            where |= position >= lengths_of(form, made)[a.name].reshape(-1, *[1] * (made[name].ndim - 1))
    return where


@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_what_lies_behind_a_length_may_be_anything(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Labels that point nowhere and numbers that are NaN there change no bit; gradients are 0 there."""
    form = TABLES[name]
    f, peer = losses(backend)[form.loss.name], getattr(targets["c"], form.loss.name)
    clean = arrays(form, 9, 6, np.float32)
    spoilt = dict(clean)
    for k, v in clean.items():
        noise = np.float32(np.nan) if v.dtype.kind == "f" else np.resize([2**40, -7], v.shape)
        spoilt[k] = np.where(behind(form, clean, k), noise, v)
    assert any((~np.isfinite(v)).any() or (v != clean[k]).any() for k, v in spoilt.items())
    for team in (0, 64):
        backend.team = team
        truth, mine = (results(f, given(form, made), form, "none") for made in (clean, spoilt))
        assert not [k for k, v in truth.items() if v.tobytes() != mine[k].tobytes()]
        assert not compared(f, peer, form, given(form, clean), "none", "float32")


@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_samples_and_axes_without_elements(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Each length 0 in turn, and all; and each axis that a length measures of size 0."""
    form = TABLES[name]
    mine, peer = losses(backend)[form.loss.name], getattr(targets["c"], form.loss.name)
    measures = {t.name: t.record.measures.name for t in form.inputs if t.record.measures is not None}
    for empty in [{k} for k in measures] + [set(measures)]:
        made = arrays(form, 3, 4, np.float64)
        for k in empty:
            made[k] = np.where(np.arange(3) == 1, made[k], 0)
        assert not compared(mine, peer, form, given(form, made), "none", "float64"), empty
        sizes = {a.name: 0 if a.name in {measures[k] for k in empty} else 4 for a in form.axes}
        made = samples(form, "normal", 2, np.float64, 0, sizes)
        assert not compared(mine, peer, form, given(form, made), "none", "float64"), sizes


@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_targets_without_an_alignment(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    """As many labels as there is room for, and only the first frame: where that has no alignment, what C says."""
    form = TABLES[name]
    mine, peer = losses(backend)[form.loss.name], getattr(targets["c"], form.loss.name)
    made = arrays(form, 3, 5, np.float64)
    first, *rest = (t.name for t in form.inputs if t.record.measures is not None)
    made[first] = np.ones_like(made[first])
    for k in rest:
        made[k] = np.full_like(made[k], 5)
    for more in ({}, {"zero_infinity": True}) if any(p.name == "zero_infinity" for p in form.params) else ({},):
        assert not compared(mine, peer, form, given(form, made, **more), "none", "float64"), more


@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_scalars_and_strides(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Another value of each scalar; arrays whose axes lie the other way round, and backwards."""
    form = TABLES[name]
    mine, peer = losses(backend)[form.loss.name], getattr(targets["c"], form.loss.name)
    call = given(form, arrays(form, 4, 5, np.float64))
    for p in form.params:
        if not p.record.reduction and not p.record.only_special:
            other = 1 - int(p.record.default) if p.record.integer else float(p.record.default) * 0.75
            assert not compared(mine, peer, form, call | {p.name: other}, "none", "float64"), p.name
    for turned in (np.asfortranarray, lambda v: np.ascontiguousarray(v[..., ::-1])[..., ::-1]):
        laid = {k: turned(v) if getattr(v, "ndim", 0) else v for k, v in call.items()}
        assert not compared(mine, peer, form, laid, "none", "float64")


@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_not_a_number_passes_through(name: str, backend: ShimBackend, targets: dict[str, Any]) -> None:
    form = TABLES[name]
    mine, peer = losses(backend)[form.loss.name], getattr(targets["c"], form.loss.name)
    made = arrays(form, 5, 4, np.float64)
    for t in form.inputs:
        if t.record.measures is not None:
            made[t.name] = np.maximum(made[t.name], 1)
    made[form.inputs[0].name][2, 0] = np.nan
    found = results(mine, given(form, made), form, "none")
    assert np.isnan(found["value"]).tolist() == [False, False, True, False, False]
    assert not compared(mine, peer, form, given(form, made), "none", "float64")


# What is refused

@needs_gxx
@pytest.mark.parametrize("name", TABLES)
def test_bad_lengths_and_labels_end_the_launch(name: str, backend: ShimBackend, capfd: pytest.CaptureFixture[str]) -> None:
    """A length beyond its axis or below 0; a label out of range where it is the sample's."""
    form = TABLES[name]
    f = losses(backend)[form.loss.name]
    good = arrays(form, 5, 4, np.float32)
    for t in form.inputs:
        if t.record.measures is not None:
            good[t.name] = np.full_like(good[t.name], 2)
    assert not np.isnan(f(**given(form, good), reduction="none")).any()
    for t in (t for t in form.inputs if t.record.integer):
        for bad in (5, -1, 2**40):
            made = good | {t.name: good[t.name].copy()}
            made[t.name][3, ...] = np.where(np.arange(4) == 1, bad, made[t.name][3]) if made[t.name].ndim == 2 else bad
            said = f"the length {bad} is outside [0, 4]" if t.record.measures else f"the index {bad} is outside [0, 4)"
            for call in (f, f.value_and_grad):
                with pytest.raises(Refused, match="1719"):
                    call(**given(form, made))
                assert f"{t.name}: {said}" in capfd.readouterr().out
@needs_gxx
@pytest.mark.parametrize("name", [name for name, form in TABLES.items() if any(p.record.into for p in form.params)])
def test_a_scalar_that_points_nowhere_is_refused(name: str, backend: ShimBackend) -> None:
    """Before anything is launched; the runtime of Python would do so before the driver does."""
    form = TABLES[name]
    kernel = backend.function("find")(f"{form.loss.name}.value_and_grad".encode(), 0)
    call = backend.ffi.new("losslib_call *")
    call.ndim, call.sizes = 1, [4, 4, 4, 4]
    place = next(k for k, p in enumerate(form.params) if p.record.into)
    for value, status in ((0, 0), (3, 0), (4, 1), (-1, 1), (float("nan"), 1)):
        call.params[place] = value
        assert backend.function("compute")(kernel, call, 0, backend.ffi.NULL, backend.ffi.NULL) == status


@needs_gxx
def test_every_kernel_is_found_and_run(backend: ShimBackend, targets: dict[str, Any]) -> None:
    """Names, arguments and their order are those of the C target, and the tests above reach every kernel."""
    names = {form.loss.name for form in TABLES.values()}
    emitted = sum((FOLDER / f"{name}.cu").read_text().count("_signature, ") for name in names) // 2
    for form in TABLES.values():
        results(losses(backend)[form.loss.name], given(form, arrays(form, 2, 3, np.float32)), form, "mean")
    for name in backend.used:
        loss, _, kernel = name.partition(".")
        peer = targets["c"]._backend.find(loss, kernel, 4)
        mine = list(backend.names("argument_name", backend.function("find")(name.encode(), 0)))
        assert mine == [lib_name(peer, k) for k in range(len(mine))] and not lib_name(peer, len(mine))
    assert len(backend.used) == emitted


# What no loss of the catalogue has

def odd_losses() -> dict[str, Loss]:
    """Pushes from a diagonal to cells of a shared matrix that several of its cells have; a mean over lengths; a table that reads tables."""
    left, right, classes = axis("left"), axis("right"), axis("classes")
    x_length, y_length = length("x_lengths", of=left), length("y_lengths", of=right)
    x = index("x", left, into=classes, length=x_length)
    y = index("y", right, into=classes, length=y_length)
    costs, gap = tensor("costs", classes, classes, per_sample=False), tensor("gap", left)
    i, j = axis("rows", extent=x_length).index(), axis("columns", extent=y_length).index()
    d = state("d", i, j, outside=oo, start={(-1, -1): 0})
    d[i, j] = costs[x[i], y[j]] - LogAddExp(-d[i - 1, j] - gap[i], -d[i, j - 1], -d[i - 1, j - 1])
    running = state("running", i)
    running[i] = running[i - 1] / 2 + gap[i] * costs[x[i], x[i]]
    return {name: loss.called(name, doc=name) for name, loss in {
        "alignment": Loss(d[x_length - 1, y_length - 1], tables=(d,)),
        "leaky": Loss(running[x_length - 1], tables=(running,), mean_over=Max(x_length, 1, tie=1)),
    }.items()}


@functools.cache
def odd_library(folder: Path) -> tuple[ShimBackend, Any, Any]:
    made = [emit.emit_loss(loss, "oddtables", "test", ("numpy", "c", "cuda")) for loss in odd_losses().values()]
    src = write_emitted(made, folder, "oddtables")
    compile_library(src, "oddtables", ["-O0"])
    backend = ShimBackend(compile_shim(src / "oddtables" / "cuda", folder / "shim"), "oddtables")
    sys.path.insert(0, str(src))
    try:
        return backend, importlib.import_module("oddtables.c"), losses(backend, "oddtables")
    finally:
        sys.path.remove(str(src))


@needs_gxx
@pytest.mark.parametrize("name", odd_losses())
def test_tables_of_other_shapes(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    backend, peer, mine = odd_library(tmp_path_factory.getbasetemp() / "oddtables")
    form = check(odd_losses()[name])[0]
    for team, (count, size) in itertools.product((0, 4, 64), ((3, 5), (2, 40), (70, 3))):
        backend.team = team
        call = given(form, arrays(form, count, size, np.float64))
        for reduction in ("none", "mean"):
            found = compared(mine[name], getattr(peer, name), form, call, reduction, "float64")
            assert not found, (team, count, size, reduction, found)
        seen = []
        for schedule in (0, 1, 2):
            backend.schedule(schedule, 3)
            seen.append(results(mine[name], call, form, "mean"))
        backend.schedule(0)
        assert all(v.tobytes() == other[k].tobytes() for other in seen[1:] for k, v in seen[0].items()), (team, count, size)


@needs_gxx
def test_diagonals_have_every_cell_once(tmp_path: Path) -> None:
    """first_on and end_on, for steps (1, 1), (2, 1) and (3, 1)."""
    (tmp_path / "diagonals.cu").write_text(r"""
#include "losslib_device.cuh"
int main()
{
    for (int64_t by = 1; by < 4; ++by)
        for (int64_t length = 0; length < 7; ++length)
            for (int64_t others = 0; others < 7; ++others) {
                int64_t seen = 0;
                for (int64_t nth = 0; nth < diagonals(length, others, by); ++nth)
                    for (int64_t a = first_on(nth, others, by); a < end_on(nth, length, by); ++a) {
                        const int64_t b = nth - by * a;
                        if (a < 0 || a >= length || b < 0 || b >= others) return 1;
                        ++seen;
                    }
                if (seen != length * others) return 2;
            }
    return 0;
}
""")
    done = subprocess.run([str(GXX), *FLAGS, f"-I{FOLDER}", str(tmp_path / "diagonals.cu"), "-o", str(tmp_path / "diagonals")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    assert subprocess.run([str(tmp_path / "diagonals")]).returncode == 0


# Faults that are put into the kernels must be seen

def by_name(name: str) -> Checked:
    return next(form for form in TABLES.values() if form.loss.name == name)


def changed(folder: Path, names: tuple[str, ...], suffix: str, change: tuple[str, str] | None) -> Path:
    """Some losses and their driver, with a change in the text, compiled for the CPU."""
    source = partial_library(FOLDER, folder / "src", names)
    if change:
        path = next(p for p in source.iterdir() if p.name.endswith(suffix))
        text = path.read_text()
        assert change[0] in text, "the fault has no place any more"
        path.write_text(text.replace(*change))
    return compile_shim(source, folder / "out", ["-O0", "-Wno-error"], cached=False)


def complaints(library: Path, form: Checked, peer: Any) -> list[str]:
    """What tests like those above say of one loss, in short."""
    backend = ShimBackend(library)
    mine = losses(backend)[form.loss.name]
    found: list[str] = []
    for team, (count, size), full in itertools.product((4, 64), ((5, 4), (3, 37)), (False, True)):
        backend.team = team
        made = arrays(form, count, size, np.float64)
        if full:
            made |= {t.name: np.full_like(made[t.name], size) for t in form.inputs if t.record.measures is not None}
        call = given(form, made)
        seen = []
        for schedule in (0, 1, 2):
            backend.schedule(schedule, 5)
            try:
                seen.append(results(mine, call, form, "none"))
            except (Refused, AssertionError) as error:
                return [str(error)[:99]]
        backend.schedule(0)
        found += disagreement(seen[0], results(getattr(peer, form.loss.name), call, form, "none"), 64 * ULP["float64"])
        found += [f"{k} depends on the schedule" for other in seen[1:] for k, v in seen[0].items() if v.tobytes() != other[k].tobytes()]
    return found


SCAN, WAVE, WARP, MATRIX = "ctc_loss", "rnnt_loss", "soft_dtw", "crf_nll"
FAULTS = {
    "nobody waits": (SCAN, "device.cuh", "            __syncthreads();\n        else\n            __syncwarp(mask);", "            ;"),
    "warps do not wait": (SCAN, "device.cuh", "            __syncwarp(mask);", "            ;"),
    "no wait after rows": (SCAN, "ctc_loss.cu", "            team.meet();\n        }\n", "        }\n"),
    "no wait between pushes": (SCAN, "ctc_loss.cu", "            team.meet();\n            for", "            for"),
    "no wait after diagonals": (WAVE, "rnnt_loss.cu", "            team.meet();\n        }\n", "        }\n"),
    "no wait between pushes of a diagonal": (WARP, "soft_dtw.cu", "            team.meet();\n            for", "            for"),
    "everybody owns every cell": (SCAN, "device.cuh", "(int)((uint32_t)cell % (uint32_t)size) == lane", "cell == cell"),
    "nobody owns the first cell": (MATRIX, "device.cuh", "return (int)((uint32_t)cell % (uint32_t)size) == lane",
                                   "return cell > 0 && (int)((uint32_t)cell % (uint32_t)size) == lane"),
    "the room of another team": (SCAN, "ctc_loss.cu", "team.first * run.about.room", "0 * run.about.room"),
    "too little room": (SCAN, "losslib_cuda.cu", "p->tables = 8 * (size_t)(busy * room);", "p->tables = 8 * (size_t)(busy * room) - 8;"),
    "tables are not filled": (SCAN, "device.cuh", "cells[k] = value;", "(void)value;"),
    "outputs are not cleared": (SCAN, "device.cuh", "data[place(cell, step)] = 0;", ";"),
    "a diagonal too few": (WAVE, "device.cuh", "by * (length - 1) + others : 0", "by * (length - 1) + others - 1 : 0"),
    "a diagonal that ends early": (WAVE, "device.cuh", "return diagonal / by + 1 < length ? diagonal / by + 1 : length;",
                                   "return diagonal / by < length ? diagonal / by : length;"),
}


@needs_gxx
@pytest.mark.parametrize("name", [SCAN, WAVE, WARP, MATRIX])
def test_kernels_without_a_fault_pass(name: str, tmp_path: Path, logarithms: Any) -> None:
    made = changed(tmp_path, (name,), "", None)
    assert in_a_child(lambda: complaints(made, by_name(name), logarithms)) == ""


@needs_gxx
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_kernels_are_seen(fault: str, tmp_path: Path, logarithms: Any) -> None:
    name, suffix, old, new = FAULTS[fault]
    made = changed(tmp_path, (name,), suffix, (old, new))
    assert in_a_child(lambda: complaints(made, by_name(name), logarithms)), "nobody sees this fault"


@needs_gxx
def test_fewer_teams_where_tables_are_large(tmp_path: Path, targets: dict[str, Any]) -> None:
    """Where there is room for the teams of one block alone these go through all samples, one after the other."""
    form = by_name(SCAN)
    made = changed(tmp_path, (SCAN,), "losslib_cuda.cu", ("MOST_TABLES = 1 << 30", "MOST_TABLES = 1"))
    backend = ShimBackend(made)
    backend.team = 64
    call = given(form, arrays(form, 20, 4, np.float32))
    assert not compared(losses(backend)[SCAN], getattr(targets["c"], SCAN), form, call, "mean", "float32")


# The compiler of GPUs

@needs_nvcc
def test_nvcc_compiles_a_loss_with_tables(tmp_path: Path) -> None:
    """One loss for one architecture; no warning, no register spilled. `-m slow` compiles all for all, in tests/test_cuda.py."""
    found = nvcc.find()
    assert found
    folder = partial_library(FOLDER, tmp_path / "src", (SCAN,))
    for path in folder.glob("*_cuda.cu"):
        path.unlink()
    nvcc.compile_object(found, folder / f"{SCAN}.cu", tmp_path / "made.o", ["sm_90"], print)
    assert (tmp_path / "made.o").stat().st_size > 0 and shutil.which("nvcc", path=str(Path(found.path).parent))

"""The typed C functions of every loss: the same numbers as the NumPy target, for every variant, reduction and omission."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest

from losscomp import compiler
from losscomp.build import build
from losscomp.oracle.evaluate import counted
from losscomp.plan import Options

pytestmark = pytest.mark.skipif(bool(compiler.missing()), reason=f"the typed C functions are NOT TESTED: {compiler.missing()}")
NAME, BATCH, SIZES = "denselib", 5, (4, 3, 2, 2)
TYPES = {"f32": ("float", np.dtype(np.float32), 2e-5), "f64": ("double", np.dtype(np.float64), 1e-11)}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any]]:
    """The whole catalogue: cffi, the functions of the C library, and the NumPy target."""
    folder = tmp_path_factory.mktemp("dense")
    build(Options(None, folder, NAME, compile=False))
    package, found = folder / "src" / NAME, compiler.find()
    assert found is not None
    sources = [str(path) for path in (package / "csrc").glob("*.c")]
    flags = ["-std=c99", "-O0", "-fPIC", "-shared", f"-I{package / 'include'}", f"-I{package / 'csrc'}"]
    subprocess.run([*found.command, *flags, *sources, "-lm", "-o", str(folder / "library.so")], check=True)
    header = (package / "include" / f"{NAME}.h").read_text()
    ffi = cffi.FFI()
    ffi.cdef("\n".join([re.search(r"typedef enum losslib_reduction .*;", header).group(),  # type: ignore[union-attr]
                        *re.findall(rf"^int {NAME}_\w+_f(?:32|64)\([^;]*\);", header, re.MULTILINE)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "src"))
        yield ffi, ffi.dlopen(str(folder / "library.so")), importlib.import_module(f"{NAME}.numpy")
    for module in [m for m in sys.modules if m.partition(".")[0] == NAME]:
        del sys.modules[module]


def sizes_of(form: Any) -> dict[str, int]:
    """A length for each axis."""
    sizes = dict(zip(form.axes, SIZES, strict=False))
    return sizes | {axis: sizes[other] + more for axis, (other, more) in form.ties.items()}


def draw(rng: np.random.Generator, tensor: Any, sizes: dict[str, int], dtype: np.dtype[Any]) -> np.ndarray:
    """An array that an input may be."""
    shape = ((BATCH,) if tensor.per_sample else ()) + tuple(sizes[a] for a in tensor.axes)
    if tensor.measures:
        return rng.integers(0, sizes[tensor.measures] + 1, shape)
    if tensor.index:
        return rng.integers(0, sizes[tensor.into] if tensor.into else 3, shape)
    low, high = max(tensor.low, -3.0), min(tensor.high, 3.0)
    return (low + (high - low) * rng.uniform(0.05, 0.95, shape)).astype(dtype)


def draws(rng: np.random.Generator, form: Any, sizes: dict[str, int], out: tuple[str, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Arrays for every input, batch first; behind the length of a sample stands what is no index."""
    arrays = {i.name: None if i.name in out else draw(rng, i, sizes, dtype) for i in form.inputs}
    for i in form.inputs:
        if i.length is not None:
            arrays[i.name][np.arange(sizes[i.axes[-1]]) >= arrays[i.length][:, None]] = -7
    return arrays


def moved(form: Any, name: str, array: Any) -> Any:
    """An array of a sample axis in front of the batch, as Python's callers have it, from one with the batch first; and back."""
    tensor = next(i for i in form.inputs if i.name == name)
    first = array is not None and tensor.per_sample and any(form.axes[a] == 0 for a in tensor.axes)
    return np.ascontiguousarray(np.moveaxis(array, 0, 1)) if first else array


def settings(form: Any) -> Iterator[dict[str, Any]]:
    """The scalars: every special value, and one that is not special; both ends of a range of integers."""
    choices = []
    for p in (p for p in form.parameters if p.reduction is None):
        special = [value for value, _ in p.special]
        if p.integer and not p.option and not p.only and not special:
            choices.append([(p.name, int(v)) for v in ((p.low, p.high) if np.isfinite([p.low, p.high]).all() else (p.default,))])
            continue
        ordinary = [] if p.option or p.only else [p.default if p.default not in special else min(max(0.37, p.low), p.high)]
        choices.append([(p.name, value) for value in special + ordinary])
    yield from map(dict, itertools.product(*choices))


def test_every_loss_gives_what_numpy_gives(libraries: tuple[Any, Any, Any]) -> None:
    for size in TYPES:
        compare(libraries, size)


def compare(libraries: tuple[Any, Any, Any], size: str) -> None:
    """All functions of one type."""
    ffi, c, target = libraries
    kind, dtype, tolerance = TYPES[size]
    rng, calls = np.random.default_rng(0), 0
    for name in target._CLASSES:
        loss = getattr(target, name)
        for form in loss.spec.forms:
            function = getattr(c, f"{NAME}_{name}{form.mark}_{size}")
            sizes = sizes_of(form)
            names = [i.name for i in form.inputs]
            optional = [i.name for i in form.inputs if i.default is not None]
            gradients = [n for n in form.wrt if form.inputs[names.index(n)].per_sample]
            for scalars, reduction, out in itertools.product(settings(form), loss.spec.reductions, [(), tuple(optional)]):
                arrays = draws(rng, form, sizes, out, dtype)
                for i in form.inputs:
                    if i.ignore is not None:
                        arrays[i.name][0] = scalars[i.ignore]
                value = np.full(BATCH if reduction == "none" else 1, np.nan, dtype)
                grads = {n: np.full_like(arrays[n], np.nan) for n in gradients}
                plain = {i.name: arrays[i.name] if i.until is None else counted(arrays[i.name], i.until) for i in form.inputs}
                pointers = [ffi.NULL if plain[n] is None else ffi.from_buffer(
                    f"{'int64_t' if form.inputs[k].index else kind}[]", plain[n]) for k, n in enumerate(names)]
                status = function(BATCH, *sizes.values(), *pointers, *(scalars[p.name] for p in form.parameters if p.reduction is None),
                                  getattr(c, f"LOSSLIB_{reduction.upper()}"), ffi.from_buffer(f"{kind}[]", value),
                                  *(ffi.from_buffer(f"{kind}[]", g) for g in grads.values()))
                case = f"{name}{form.mark} {scalars} {reduction} without {out}"
                assert status == 0, case
                given = {n: moved(form, n, array) for n, array in arrays.items()}
                wanted, slopes = loss.value_and_grad(**given, **scalars, reduction=reduction, wrt=tuple(gradients))
                np.testing.assert_allclose(value, np.atleast_1d(wanted), tolerance, tolerance, err_msg=case)
                for n in gradients:
                    np.testing.assert_allclose(grads[n], moved(form, n, getattr(slopes, n)), tolerance, tolerance, err_msg=f"{case}: {n}")
                calls += 1
    assert calls > 100


def test_sources_of_a_loss_do_not_see_the_typed_functions() -> None:
    """Else a new argument of one loss would compile all of them again."""
    header = Path(__file__).resolve().parent.parent / "templates" / "c" / "library.h.jinja"
    assert "#if !defined LOSSLIB_INTERNAL_H || defined LOSSLIB_WHOLE" in header.read_text()

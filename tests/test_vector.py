"""The elementary functions of the C target: near the exact value over the whole range, and the same bits at every level."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flint
import numpy as np
import pytest
from numpy.typing import NDArray
from support import COMPILER, compile_library, load_library, write_emitted, write_library

from losscomp.language import Loss, Sum, axis, exp, log, tensor
from losscomp.targets.c import ELEMENTARY

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
LEVELS = ("", "_avx2", "_avx512")
Truth = Callable[[Any], Any]

# Every function of one argument: as a call, in exact arithmetic, and the most ULP that it may be off, for float and double.
ARB: dict[str, tuple[str, Truth, float]] = {
    "exp": ("exp({x})", lambda x: x.exp(), 1),
    "expm1": ("expm1({x})", lambda x: x.expm1(), 1.2),
    "log": ("log({x})", lambda x: x.log(), 1),
    "log1p": ("log1p({x})", lambda x: x.log1p(), 1),
    "tanh": ("tanh({x})", lambda x: x.tanh(), 2),
    "sigmoid": ("sigmoid({x})", lambda x: 1 / (1 + (-x).exp()), 2),
    "softplus": ("softplus({x})", lambda x: x.exp().log1p(), 2),
    "expm1mx": ("expm1mx({x})", lambda x: x.expm1() - x, 2.5),
    "exp_difference": ("exp_difference({x}, (REAL)0.25)", lambda x: (x - flint.arb("0.25")).exp(), 1.5),
    "exp_below": ("exp_below(-fabs({x}), (REAL)0.25)", lambda x: (-abs(x) - flint.arb("0.25")).exp(), 1.5),
    "exp_quotient": ("exp_quotient({x}, (REAL)0.25, (REAL)0.75)", lambda x: ((x - flint.arb("0.25")) / flint.arb("0.75")).exp(), 1.5),
    "times_exp": ("times_exp(3, {x})", lambda x: 3 * x.exp(), 2),
    "times_sigmoid": ("times_sigmoid(3, {x})", lambda x: 3 / (1 + (-x).exp()), 3),
}
pytestmark = pytest.mark.skipif(COMPILER is None, reason="NOT CHECKED: no C compiler; the functions of the C target are not checked")


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library with each function over an array, at each level."""
    folder = tmp_path_factory.mktemp("vector")
    package = write_emitted([], folder, "vec") / "vec"
    one = "{level} void try_{name}{suffix}_##TYPE(const REAL *x, REAL *y, int64_t n) {{ for (int64_t i = 0; i < n; ++i) y[i] = {of}; }}"
    rows = []
    for name, (call, _, _) in ARB.items():
        for suffix, level in zip(LEVELS, ("", "AVX2", "AVX512"), strict=True):
            rows.append((suffix, one.format(level=level, name=name, suffix=suffix, of=call.format(x="x[i]"))))
    plain = [row for suffix, row in rows if not suffix]
    text = ['#include "vec_internal.h"', "enum { dense = 1 };", "#if LEVELS > 1"]
    text += ["#define ALL(TYPE) " + " \\\n".join(row for _, row in rows), "#else", "#define ALL(TYPE) " + " \\\n".join(plain), "#endif"]
    text += ['#include "vec_float.h"', "ALL(f32)", '#include "vec_double.h"', "ALL(f64)", "int levels(void) { return vec_level(); }"]
    source = package / "csrc" / "trial.c"
    source.write_text("\n".join(text) + "\n")
    out = folder / "trial.so"
    command = [str(COMPILER), "-std=c99", "-ffp-contract=off", *FLAGS, "-Wall", "-Werror", "-fPIC", "-shared", str(source),
               str(package / "csrc" / "vec_sums.c"), f"-I{package / 'include'}", f"-I{package / 'csrc'}", "-o", str(out), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(str(out))


def call(functions: ctypes.CDLL, name: str, x: NDArray[Any], level: str = "") -> NDArray[Any]:
    """A function over an array."""
    y = np.empty_like(x)
    kind = "f32" if x.dtype == np.float32 else "f64"
    getattr(functions, f"try_{name}{level}_{kind}")(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(x.size))
    return y


def patterns(dtype: type, count: int) -> NDArray[Any]:
    """Numbers spread over all bit patterns of a type, and more where the functions are neither 0 nor infinite, and at their seams."""
    rng = np.random.default_rng(7)
    bits = np.uint32 if dtype is np.float32 else np.uint64
    every = rng.integers(0, np.iinfo(bits).max, count, dtype=bits, endpoint=True).view(dtype)
    edge = 104 if dtype is np.float32 else 746
    spread = rng.uniform(-edge, edge, count)
    near = rng.uniform(-2, 2, count)
    seams = np.array([0.5, 1, 2**-0.5, 2**0.5, np.log(2) / 2, 0.3465, 88.72, 709.78, 87.33, 103.97, 708.39, 744.44, 745.13,
                      2.0**-24, 2.0**-53])
    with np.errstate(over="ignore", invalid="ignore"):
        around = np.array([np.nextafter(dtype(s) * sign, dtype(way) * np.inf) for s in seams for sign in (1, -1) for way in (1, -1)])
        return np.concatenate([every, spread, near, around]).astype(dtype)


def distances(x: NDArray[Any], found: NDArray[Any], truth: Truth) -> NDArray[np.float64]:
    """How far results are from the exact values, in ULP of these; infinity where one is NaN or infinite and the other is not."""
    info = np.finfo(x.dtype)
    out = np.zeros(x.size)
    largest = flint.arb(float(info.max))
    with flint.ctx.workprec(1300):
        for k in range(x.size):
            exact = truth(flint.arb(float(x[k])))
            if exact.is_nan() or not exact.is_finite():
                out[k] = 0 if not np.isfinite(found[k]) else np.inf
                continue
            if not np.isfinite(found[k]):
                out[k] = 0 if abs(exact) >= largest else np.inf
                continue
            size = abs(exact)
            power = int(size.mid().man_exp()[1] + size.mid().man_exp()[0].bit_length()) - 1 if size > 0 else -10**6
            unit = flint.arb(2) ** (max(power, int(info.minexp)) - int(info.nmant))
            out[k] = float((abs(exact - flint.arb(float(found[k]))) / unit).mid())
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ARB)
def test_near_the_exact_value(functions: ctypes.CDLL, name: str, dtype: type) -> None:
    _, truth, most = ARB[name]
    x = patterns(dtype, 700)
    x = x[np.isfinite(x) & (np.abs(x) < 1e5 if name not in ("log", "log1p", "tanh") else np.abs(x) >= 0)]
    if name in ("log", "log1p"):
        x = x[x > (0 if name == "log" else -1)]
    off = distances(x, call(functions, name, x), truth)
    worst = int(np.argmax(off))
    assert off[worst] <= most, f"{name}({x[worst]!r}) is {off[worst]} ULP off"


# The same in double and long double, where these are precise enough to judge float.
NUMPY: dict[str, Truth] = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
    "sigmoid": lambda x: np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}


@pytest.mark.parametrize("name", NUMPY)
def test_float_over_all_bit_patterns(functions: ctypes.CDLL, name: str) -> None:
    x = np.arange(0, 2**32, 1997, dtype=np.uint64).astype(np.uint32).view(np.float32)
    found = call(functions, name, x)
    with np.errstate(all="ignore"):
        exact = NUMPY[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
        finite = np.isfinite(found) & np.isfinite(rounded)
        unit = np.ldexp(1.0, np.maximum(np.frexp(exact[finite])[1] - 1, -126) - 23)
    agree = (found == rounded) | (np.isnan(found) & np.isnan(rounded)) | (np.abs(exact) >= np.finfo(np.float32).max)
    assert agree[~finite].all(), x[~finite][~agree[~finite]][:5]
    off = np.abs(found[finite].astype(np.float64) - exact[finite]) / unit
    assert off.max() <= ARB[name][2], (name, x[finite][np.argmax(off)], off.max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_no_ordinary_number(functions: ctypes.CDLL, dtype: type) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([0.0, -0.0, inf, -inf, nan], dtype)
    expected = {
        "exp": [1, 1, inf, 0, nan], "expm1": [0, -0.0, inf, -1, nan], "log": [-inf, -inf, inf, nan, nan], "log1p": [0, -0.0, inf, nan, nan],
        "tanh": [0, -0.0, 1, -1, nan], "sigmoid": [0.5, 0.5, 1, 0, nan], "times_exp": [3, 3, inf, 0, nan],
        "times_sigmoid": [1.5, 1.5, 3, 0, nan],
    }
    for name, values in expected.items():
        found = call(functions, name, x)
        want = np.array(values, dtype)
        np.testing.assert_array_equal(found, want, err_msg=name)
        assert (np.signbit(found) == np.signbit(want))[~np.isnan(want)].all(), name
    np.testing.assert_array_equal(call(functions, "log1p", np.array([-1, -2], dtype)), [-inf, nan])
    tiny = np.array([np.finfo(dtype).smallest_subnormal], dtype)
    for name in ("expm1", "log1p", "tanh"):
        np.testing.assert_array_equal(call(functions, name, tiny), tiny, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_at_every_level(functions: ctypes.CDLL, dtype: type) -> None:
    level = functions.levels()
    if level == 0:
        pytest.skip("NOT CHECKED: this machine has neither AVX2 with FMA nor AVX-512, or is no x86-64: their functions are not compared")
    x = patterns(dtype, 20_000)
    for name in ARB:
        plain = call(functions, name, x)
        for other in LEVELS[1:level + 1]:
            np.testing.assert_array_equal(call(functions, name, x, other), plain, err_msg=f"{name}{other}")


def test_kernels_give_the_same_bits_at_every_level(functions: ctypes.CDLL, tmp_path: Path) -> None:
    """And what the NumPy target gives, also where rows are short and stand side by side, in tiles that are not full.

    A processor that says that it has no vectors runs the functions for any strides; one without AVX-512 those for AVX2.
    """
    cells = axis("cells")
    x, y = tensor("x", cells), tensor("y", cells)
    i, a, b = cells.index(), tensor("a"), tensor("b")
    rows = Loss(Sum(exp(x[i]) * y[i], i) / log(Sum(exp(x[i]), i)), name="rows")
    single = Loss(log(1 + exp(a * b)) * b - a, name="single")
    rng = np.random.default_rng(3)
    given = [("single", [rng.normal(size=5001) * 30 for _ in "ab"])]
    given += [("rows", [rng.normal(size=(67, length)) for _ in "xy"]) for length in (1, 7, 64, 65, 701)]
    found: dict[str, list[NDArray[Any]]] = {}
    numpy: list[NDArray[Any]] = []
    says = "-D__builtin_cpu_supports(x)={}".format
    older = {"none": [says("0")], "avx2": [says("(x[0] == 'f' || x[3] == '2')")]} if functions.levels() else {}
    for name, more in {"best": [], "plain": ["-DLOSSLIB_PLAIN"], **older}.items():
        flags = [*FLAGS, *more]
        src = write_library([rows, single], tmp_path / name, name)
        compile_library(src, name, flags)
        modules = load_library(src, name, compiled=True)
        for target, results in (("c", found.setdefault(name, [])), ("numpy", numpy)):
            for loss, arrays in given:
                for dtype in (np.float32, np.float64):
                    value, gradients = getattr(modules[target], loss).value_and_grad(*(v.astype(dtype) for v in arrays))
                    results += [np.asarray(value), *(gradients if isinstance(gradients, tuple) else [gradients])]
    for k, (best, other) in enumerate(zip(found["best"], numpy, strict=False)):
        for name, results in found.items():
            np.testing.assert_array_equal(best, results[k], err_msg=name)
        close = 64 * float(np.finfo(best.dtype).eps)
        np.testing.assert_allclose(best, other, rtol=close, atol=close * float(np.abs(other).max()))


def test_every_function_is_checked() -> None:
    assert set(ARB) == {name for name, _, _ in ELEMENTARY}


def test_the_polynomials_are_as_derived() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "polynomials.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

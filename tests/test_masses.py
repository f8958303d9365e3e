"""Recurrences in masses: the functions on masses, the tables that are kept so, and results where masses and logarithms differ most."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import flint
import numpy as np
import pytest
from support import COMPILER, compile_library, library, load_library, write_emitted, write_library

from losscomp import catalogue
from losscomp.check import check
from losscomp.emit import compile_definition
from losscomp.family import families
from losscomp.language import Eq, If, LogAddExp, LogSumExp, Loss, Sum, axis, exp, index, length, oo, state, tensor
from losscomp.masses import in_masses
from losscomp.oracle import exact, ulp_error
from losscomp.pipeline import compile_loss
from losscomp.sampling import as_given, parameters
from losscomp.targets.c import FamilyText
from losscomp.targets.c_tables import TablesText

Array = Any
DEFINITIONS = {name: d for name, d in catalogue.load(catalogue.builtin_definitions()).items() if getattr(d, "tables", ())}
LEVELS = ("", "_avx2", "_avx512")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="NOT CHECKED: the C target's masses: there is no C compiler")

TRIAL = """
{level} void masses{suffix}(const double *x, double *part, double *power, double *back, int64_t n)
{{
    for (int64_t i = 0; i < n; ++i) {{ part[i] = scaled_exp(x[i]); power[i] = scaled_power(x[i]); }}
    for (int64_t i = 0; i < n; ++i) back[i] = scaled_log(part[i], power[i]);
}}
{level} void units{suffix}(const double *x, double *part, double *power, double *back, int64_t n)
{{
    for (int64_t i = 0; i < n; ++i) {{
        part[i] = significand(x[i]);
        power[i] = exponent_of(x[i]);
        back[i] = times_power(part[i], power[i]);
    }}
}}
"""


# The functions

@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library with the functions on masses, at each level."""
    folder = tmp_path_factory.mktemp("masses")
    package = write_emitted([], folder, "vec") / "vec"
    more = "".join(TRIAL.format(level=level, suffix=suffix) for suffix, level in zip(LEVELS, ("", "AVX2", "AVX512"), strict=True) if level)
    text = ['#include "vec_internal.h"', '#include "vec_double.h"', '#include "vec_scaled.h"', TRIAL.format(level="", suffix=""),
            f"#if LEVELS > 1\n{more}\n#endif", "int levels(void) { return vec_level(); }",
            "int asked(double sum, double logarithm, int wide) { return vouched(sum, logarithm, wide ? sizeof(double) : sizeof(float)); }"]
    source = package / "csrc" / "trial.c"
    source.write_text("\n".join(text) + "\n")
    out = folder / "trial.so"
    command = [str(COMPILER), "-std=c99", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Werror", "-fPIC",
               "-shared", str(source), str(package / "csrc" / "vec_sums.c"), f"-I{package / 'include'}", f"-I{package / 'csrc'}",
               "-o", str(out), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(str(out))


def call(functions: ctypes.CDLL, name: str, x: Array) -> tuple[Array, Array, Array]:
    """A function of the trial over an array."""
    found = [np.empty_like(x) for _ in range(3)]
    getattr(functions, name)(*(ctypes.c_void_p(a.ctypes.data) for a in (x, *found)), ctypes.c_int64(x.size))
    return found[0], found[1], found[2]


@needs_compiler
def test_the_mass_of_a_logarithm(functions: ctypes.CDLL, rng: np.random.Generator) -> None:
    """Within 1 ULP for any power; for a number beyond 2^50 as exactly as it is a double itself."""
    x = np.concatenate([rng.uniform(-s, s, 200) for s in (1e-9, 0.4, 50, 1e4, 1e9)])
    part, power, back = call(functions, "masses", x)
    with flint.ctx.workprec(200):
        for k in range(x.size):
            truth = flint.arb(float(x[k])).exp() / flint.arb(2)**int(power[k])
            limit = 1 if abs(x[k]) < 4e4 else 1 + abs(x[k])              # as exactly as x is a double itself
            assert abs(float(truth - float(part[k]))) <= limit * np.spacing(part[k]), x[k]
    assert (part > 0.7).all() and (part < 1.42).all() and (power == np.round(power)).all()
    np.testing.assert_allclose(back, x, rtol=2e-16, atol=2e-16)
    far = np.concatenate([rng.uniform(-1, 1, 200) * 2.0**e for e in (51, 60, 300, 999)])
    part, power, back = call(functions, "masses", far)
    np.testing.assert_allclose(back, far, rtol=1e-15)


@needs_compiler
def test_masses_that_are_no_ordinary_numbers(functions: ctypes.CDLL) -> None:
    part, power, back = call(functions, "masses", np.array([-np.inf, 0, -0.0, np.inf, np.nan, 1e305, -1e305]))
    np.testing.assert_array_equal(part, [0, 1, 1, *[np.nan] * 4])                      # what is not known is computed in logarithms
    np.testing.assert_array_equal(power[:3], [-np.inf, 0, 0])
    np.testing.assert_array_equal(back, [-np.inf, 0, 0, *[np.nan] * 4])
    x = np.array([0, 1, 1.999, 2, 3e-308, 1e288, np.inf, np.nan])
    part, power, back = call(functions, "units", x)
    assert ((part[1:6] >= 1) & (part[1:6] < 2)).all() and part[0] == 0 and part[6] == np.inf and np.isnan(part[7])
    np.testing.assert_array_equal(back[:6], x[:6])


@needs_compiler
def test_masses_have_the_same_bits_at_every_level(functions: ctypes.CDLL, rng: np.random.Generator) -> None:
    level = functions.levels()
    if level == 0:
        pytest.skip("NOT CHECKED: levels of masses: this machine has neither AVX2 with FMA nor AVX-512, or is no x86-64")
    x = np.concatenate([rng.normal(size=5000) * 10.0**rng.integers(-9, 20, 5000), [0, np.inf, -np.inf, np.nan]])
    for name, given in (("masses", x), ("units", np.abs(x))):
        plain = call(functions, name, given)
        for other in LEVELS[1:level + 1]:
            for a, b in zip(call(functions, f"{name}{other}", given), plain, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{name}{other}")


@needs_compiler
def test_what_is_vouched_for(functions: ctypes.CDLL) -> None:
    functions.asked.argtypes = [ctypes.c_double, ctypes.c_double, ctypes.c_int]
    inf, nan = np.inf, np.nan
    cases = [(-50, -50, 1, 1), (-0.01, -0.01, 1, 0), (-1e-6, -1e-6, 0, 0), (0, 0, 0, 0), (-inf, -inf, 1, 1), (inf, inf, 0, 0),
             (nan, nan, 0, 0), (1e-3, 1e3, 0, 0), (20, 1e3, 1, 0), (-1e6, -1e6, 1, 0), (-1e8, -1e8, 0, 0)]
    for sum_, logarithm, single, double in cases:
        assert (bool(functions.asked(sum_, logarithm, 0)), bool(functions.asked(sum_, logarithm, 1))) == (bool(single), bool(double))


# The tables

def tagger() -> Loss:
    """A linear-chain conditional random field as the textbook has it: a log-sum-exp over the row before."""
    time, tags = axis("time"), axis("tags")
    emissions, transitions = tensor("emissions", time, tags), tensor("transitions", tags, tags, per_sample=False)
    lengths = length("lengths", of=time)
    tag = index("target", time, into=tags, length=lengths)
    t, j, k = axis("positions", extent=lengths).index(), tags.index(), tags.index()
    alpha = state("alpha", t, j)
    alpha[t, j] = emissions[t, j] + If(Eq(t, 0), 0, LogSumExp(alpha[t - 1, k] + transitions[k, j], k))
    step = emissions[t, tag[t]] + If(Eq(t, 0), 0, transitions[tag[t - 1], tag[t]])
    return Loss(If(Eq(lengths, 0), 0, LogSumExp(alpha[lengths - 1, j], j) - Sum(step, t)), tables=(alpha,)).called("tagger")


RECURRENCES = DEFINITIONS | {"tagger": tagger()}


@pytest.mark.parametrize(("name", "expected"), [
    ("ctc_loss", {"alpha", "alpha_total"}), ("tagger", {"alpha", "alpha_total", "transitions"}),
    ("rnnt_loss", {"stay", "emit", "alpha"}), ("soft_dtw", {"r", "nearest", "r_step"})])
def test_tables_that_are_masses(name: str, expected: set[str]) -> None:
    for formula in compile_definition(RECURRENCES[name])[0][0].stable:
        if formula.name in ("value", "value_and_grad"):
            assert formula.program is not None
            program = in_masses(formula.program)
            assert program is not None
            names = {c.tensor.name for c in program.cells}
            assert {n.removesuffix("_part") for n in names if n.endswith("_part")} == expected
            assert {n.removesuffix("_power") for n in names if n.endswith("_power")} == expected


def chain(cell: Any, outside: Any = -oo) -> Loss:
    """A small recurrence over rows: what `cell` says of the two cells before."""
    time, classes = axis("time"), axis("classes")
    x, count = tensor("x", time, classes), length("valid", of=time)
    t, c = axis("steps", extent=count).index(), classes.index()
    alpha = state("alpha", t, c, outside=outside, start={(-1, 0): 0})
    alpha[t, c] = cell(alpha[t - 1, c], alpha[t - 1, c - 1], x[t, c])
    return Loss(-LogAddExp(alpha[count - 1, classes - 1], alpha[count - 1, classes - 2]), tables=(alpha,), name="chain")


@pytest.mark.parametrize(("loss", "fits"), [
    (chain(lambda a, b, x: LogAddExp(a, b) + x), True),
    (chain(lambda a, b, x: LogAddExp(2 * a, 2 * b) / 2 + x), False),                   # the factor is not that of the result
    (chain(lambda a, b, x: LogAddExp(a, b) + x * exp(a)), False),                      # a number is made of a cell
    (chain(lambda a, b, x: LogAddExp(a, 2 * b) + x), False)])                          # two factors
def test_only_what_is_read_in_sums(loss: Loss, fits: bool) -> None:
    (compiled,) = compile_loss(loss)
    program = compiled.stable[0].program
    assert program is not None and (in_masses(program) is not None) == fits


@pytest.mark.parametrize("name", RECURRENCES)
def test_memory_grows_with_the_cells(name: str) -> None:
    """Linear along each axis of a table: twice as long is at most twice as much, and half of that at least."""
    for family in families(compile_definition(RECURRENCES[name])[0]):
        if family.scaled is None:
            continue
        text = FamilyText(family, TablesText).scaled
        assert text is not None
        sizes = dict.fromkeys(family.kernel.axes, 300)
        cells = lambda **more: eval(" + ".join(text.cells), {**sizes, **more})                                        # noqa: B023
        for _, along in text.sizes:
            once, twice, thrice = (cells(**{along: k * 300}) for k in (1, 2, 3))
            degree = 2 if name == "tagger" and along == "tags" else 1                 # transitions have two axes of tags
            assert twice < 2.1**degree * once and (degree == 2 or thrice - twice == twice - once)


# Results

def log_softmax(x: Array) -> Array:
    return x - np.logaddexp.reduce(x, -1, keepdims=True)


def alignments(rng: np.random.Generator, frames: int, spread: float) -> dict[str, Array]:
    lengths = np.array([frames, frames - 1, frames // 2, frames])
    return {"log_probs": log_softmax(rng.normal(size=(frames, 4, 9)) * spread), "targets": rng.integers(1, 9, (4, 4)),
            "input_lengths": lengths, "target_lengths": np.array([4, 3, 1, 0])}


def impossible(rng: np.random.Generator) -> dict[str, Array]:
    given = alignments(rng, 12, 1)
    given["log_probs"][rng.random((12, 4, 9)) < 0.15] = -np.inf
    given["log_probs"][:, 1, given["targets"][1, 0]] = -np.inf                         # no way at all
    given["log_probs"][:, 2:] = np.where(given["log_probs"][:, 2:] == -np.inf, -1e30, given["log_probs"][:, 2:])
    return given


def certain(rng: np.random.Generator) -> dict[str, Array]:
    """One path has nearly all of the mass: the logarithm of a mass near 1."""
    given = alignments(rng, 12, 1)
    scores = np.full((12, 4, 9), -80.0)
    for n, count in enumerate(given["target_lengths"]):
        path = np.zeros(12, int)
        path[1:2 * count:2] = given["targets"][n, :count]
        scores[np.arange(12), n, path] = -10.0**rng.uniform(-12, -7, 12)
    return given | {"log_probs": scores, "input_lengths": np.full(4, 12)}


def tagging(rng: np.random.Generator, spread: float) -> dict[str, Array]:
    return {"emissions": rng.normal(size=(4, 9, 5)) * spread, "transitions": rng.normal(size=(5, 5)) * spread,
            "lengths": np.array([9, 1, 0, 6]), "target": rng.integers(0, 5, (4, 9))}


def sure_tagging(rng: np.random.Generator) -> dict[str, Array]:
    """The best tags have all of the mass but 1e-9: the loss is what is left of a difference."""
    given = tagging(rng, 0.125)
    for n in range(4):
        given["emissions"][n, np.arange(9), given["target"][n]] += 21
    return {k: np.round(v * 64) / 64 if k in ("emissions", "transitions") else v for k, v in given.items()}


def walks(rng: np.random.Generator, spread: float) -> dict[str, Array]:
    return {"logits": rng.normal(size=(4, 7, 5, 6)) * spread, "targets": rng.integers(1, 6, (4, 4)),
            "logit_lengths": np.array([7, 2, 7, 1]), "target_lengths": np.array([4, 0, 2, 3])}


def warpings(rng: np.random.Generator, spread: float) -> dict[str, Array]:
    return {"input": rng.normal(size=(4, 7, 3)) * spread, "target": rng.normal(size=(4, 6, 3)) * spread,
            "input_lengths": np.array([7, 3, 0, 1]), "target_lengths": np.array([6, 6, 0, 4])}


CASES: dict[str, tuple[str, Any]] = {
    "ordinary": ("ctc_loss", lambda rng: alignments(rng, 40, 1)), "peaked": ("ctc_loss", lambda rng: alignments(rng, 40, 100)),
    "very peaked": ("ctc_loss", lambda rng: alignments(rng, 40, 1e4)),
    "impossible": ("ctc_loss", impossible), "certain": ("ctc_loss", certain),
    "tags": ("tagger", lambda rng: tagging(rng, 1)), "far tags": ("tagger", lambda rng: tagging(rng, 500)),
    "sure tags": ("tagger", sure_tagging),
    "walks": ("rnnt_loss", lambda rng: walks(rng, 1)), "far walks": ("rnnt_loss", lambda rng: walks(rng, 300)),
    "warpings": ("soft_dtw", lambda rng: warpings(rng, 1)), "far warpings": ("soft_dtw", lambda rng: warpings(rng, 100)),
    "near warpings": ("soft_dtw", lambda rng: {k: v[:, :1] if v.ndim == 3 else np.ones(4, int)
                                               for k, v in warpings(rng, 1e-7).items()}),
}


@pytest.fixture(scope="module")
def everywhere(targets: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The libraries by target: that of the catalogue, and one with the textbook's field."""
    own = library([tagger()], tmp_path_factory.mktemp("tagger"), "tagging", "-O1")
    return {name: [targets[name], own[name]] for name in ("numpy", "c")}


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_masses_agree_with_logarithms(everywhere: dict[str, list[Any]], rng: np.random.Generator, case: str, dtype: str) -> None:
    """The C target beside NumPy's, which computes in logarithms: the usual call, and one for each loss."""
    name, make = CASES[case]
    given = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in make(rng).items()}
    theirs, ours = (next(getattr(L, name) for L in everywhere[target] if hasattr(L, name)) for target in ("numpy", "c"))
    units = 8 * np.finfo(dtype).eps
    for reduction in ("sum", "none"):
        expected, slopes = theirs.value_and_grad(**given, reduction=reduction)
        value, grads = ours.value_and_grad(**given, reduction=reduction)
        np.testing.assert_allclose(value, expected, rtol=units)
        np.testing.assert_array_equal(value, ours(**given, reduction=reduction))
        for a, b in zip(grads if isinstance(grads, tuple) else [grads], slopes if isinstance(slopes, tuple) else [slopes], strict=True):
            near = 2e-12 if dtype == "float64" else 1e-6                                   # logarithms of some thousands are exact to 1e-12
            np.testing.assert_allclose(a, b, rtol=units, atol=near * max(1, np.abs(np.where(np.isfinite(b), b, 0)).max()))


def posteriors(log_probs: Array, labels: Array) -> tuple[float, Array]:
    """The loss of one sample, and its derivative: forwards and backwards, in long double."""
    states = np.zeros(2 * len(labels) + 1, int)
    states[1::2] = labels
    jump = np.array([s > 1 and states[s] != 0 and states[s] != states[s - 2] for s in range(len(states))])
    x = log_probs.astype(np.longdouble)[:, states]
    none = np.full(len(states), -np.inf, np.longdouble)
    there, back = np.tile(none, (len(x), 1)), np.tile(none, (len(x), 1))
    there[0, :2], back[-1, -2:] = x[0, :2], 0
    for t in range(1, len(x)):
        a = there[t - 1]
        there[t] = np.logaddexp(np.logaddexp(a, np.r_[none[:1], a[:-1]]), np.where(jump, np.r_[none[:2], a[:-2]], -np.inf)) + x[t]
    for t in range(len(x) - 2, -1, -1):
        b = back[t + 1] + x[t + 1]
        back[t] = np.logaddexp(np.logaddexp(b, np.r_[b[1:], none[:1]]), np.r_[np.where(jump[2:], b[2:], -np.inf), none[:2]])
    whole = np.logaddexp(there[-1, -1], there[-1, -2])
    slope = np.zeros(log_probs.shape, np.longdouble)
    np.add.at(slope.T, states, -np.exp(there + back - whole).T)
    return float(-whole), slope


@pytest.mark.parametrize("spread", [1, 30])
def test_long_sequences(targets: dict[str, Any], rng: np.random.Generator, spread: float) -> None:
    """2000 frames: exact to 1e-13, where logarithms have lost a thousand times as much."""
    given = alignments(rng, 2000, spread)
    value, grads = targets["c"].ctc_loss.value_and_grad(**given, reduction="sum", normalized=False)
    total = 0.0
    for n, (frames, count) in enumerate(zip(given["input_lengths"][:3], given["target_lengths"][:3], strict=True)):
        loss, slope = posteriors(given["log_probs"][:frames, n], given["targets"][n, :count])
        np.testing.assert_allclose(grads.log_probs[:frames, n], slope.astype(float), atol=1e-13)
        total += loss
    total -= given["log_probs"][:, 3, 0].sum()
    np.testing.assert_allclose(value, total, rtol=1e-14)


@pytest.mark.parametrize("case", ["certain", "near warpings", "far warpings"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_digits_that_masses_lose(targets: dict[str, Any], rng: np.random.Generator, case: str, dtype: str) -> None:
    """Where the logarithm of a mass has lost digits, the loss has them all the same: beside the oracle's."""
    name, make = CASES[case]
    (form,) = check(DEFINITIONS[name])
    given = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in make(rng).items()}
    truth = exact(form, {k: np.moveaxis(v, 0, 1) if k == "log_probs" else v for k, v in given.items()}, parameters(form), reduction="none",
                  wrt=[])
    found = getattr(targets["c"], name)(**as_given(form, {k: v for k, v in given.items() if k != "log_probs"}),
                                        **{k: v for k, v in given.items() if k == "log_probs"}, reduction="none")
    assert ulp_error(found, truth.value, dtype).max() <= 4


def near_one(rng: np.random.Generator) -> dict[str, Array]:
    """A path that has nearly all of the mass; unlikely ones; ones of which none is likely, in many steps."""
    scores = np.full((3, 3000, 4), -200.0)
    scores[0, np.arange(60), np.minimum(np.arange(60), 3)] = -10.0**rng.uniform(-10, -7, 60)
    scores[1] = rng.normal(size=(3000, 4)) * 30 - 40
    scores[2] = -0.3
    return {"x": scores, "valid": np.array([60, 60, 3000])}


FAULTS = {
    "": {},
    "masses near 1 are vouched for": {"return logarithm == -INFINITY ||": "return 1 ||"},
    "masses keep their parts": {"return x * real_f64(((2046 - (bits_f64(x) >> 52)) & 2047) << 52);": "return x;",
                                "return real_f64(bits_f64(x) >> 52 | bits_f64(0x1p52)) - (0x1p52 + 1023);": "return 0 * x;"},
    "sums forget the powers": {"const double least = power > -1087 ? power : -1087;": "const double least = 0;"},
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_would_be_seen(tmp_path: Path, rng: np.random.Generator, fault: str) -> None:
    """A small recurrence beside the sum of all its terms in long double, as it is and with faults in what the emitted code is made of."""
    src = write_library([chain(lambda a, b, x: LogAddExp(a, b) + x)], tmp_path, f"lib{list(FAULTS).index(fault)}")
    name = f"lib{list(FAULTS).index(fault)}"
    header = src / name / "csrc" / f"{name}_scaled.h"
    text = header.read_text()
    for old, new in FAULTS[fault].items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    header.write_text(text)
    compile_library(src, name, ["-O0"])
    given = near_one(rng)
    alpha = np.full((3, 5), -np.inf, np.longdouble)
    alpha[:, 1] = 0
    expected = np.zeros(3)
    for t in range(3000):
        alpha[:, 1:] = np.logaddexp(alpha[:, 1:], alpha[:, :-1]) + given["x"][:, t]
        expected = np.where(t == given["valid"] - 1, -np.logaddexp(alpha[:, -1], alpha[:, -2]), expected)
    with np.errstate(all="ignore"):
        found = load_library(src, name, compiled=True)["c"].chain(**given, reduction="none")
    good = np.allclose(found, expected, rtol=1e-13, atol=0)
    assert good == (not fault), (found, expected)

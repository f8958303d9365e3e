"""Loading definitions, and the package's own definitions against PyTorch, in float64 and without the compiler's rewrites."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy as sp

from losscomp import atoms, nodes
from losscomp.catalogue import builtin_definitions, load, load_file, module_name
from losscomp.check import Checked, check
from losscomp.differentiate import gradient
from losscomp.errors import CheckError, DefinitionError, LosscompError
from losscomp.language import Definition, Loss, Overload
from losscomp.pipeline import compile_loss

BUILTIN = load(builtin_definitions())
NAMES = list(BUILTIN)
LIKE_TORCH = [name for name, definition in BUILTIN.items() if definition.like.startswith("torch.")]
HEAD = "from losscomp.language import Loss, Overload, log, param, tensor\n"


def forms_of(definition: Definition) -> tuple[Loss, ...]:
    return definition.forms if isinstance(definition, Overload) else (definition,)


# Loading

def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_names_its_losses_and_sub_expressions(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", f'"""Two losses.\n\nMore."""\n{HEAD}' + """
x, y = tensor("x"), tensor("y")
error = x - y
_scale = 2 * x
exp = x * y
half = 0 * x + 3
square = Loss(error**2 * _scale)
by_kind = Overload(Loss(error * exp), Loss(error),
                   module="Kind")
_private = Loss(x)
""")
    square, by_kind = load_file(path)
    assert isinstance(square, Loss) and isinstance(by_kind, Overload)
    assert (square.name, square.doc, square.path) == ("square", "Two losses.\n\nMore.", f"{path}:11")
    assert list(square.names.values()) == ["error"]              # neither numbers, nor private names, nor those of targets
    assert (by_kind.name, by_kind.path, [f.name for f in by_kind.forms]) == ("by_kind", f"{path}:12", ["by_kind"] * 2)
    assert all(f.names == square.names and f.path == by_kind.path for f in by_kind.forms)
    assert [module_name(d) for d in (square, by_kind, square.called("my_2nd_loss"))] == ["Square", "Kind", "My2ndLoss"]


def test_a_folder_is_sorted_searched_and_filtered(tmp_path: Path) -> None:
    for name in ("b/second", "a/zebra", "a/_helper", "__pycache__/c", ".hidden/d", "apple"):
        write(tmp_path, f"{name}.py", f'{HEAD}{name.split("/")[-1].strip("_")} = Loss(tensor("x"))\n')
    assert list(load(tmp_path)) == ["apple", "second", "zebra"]
    assert list(load(tmp_path / "apple.py")) == ["apple"]


@pytest.mark.parametrize(("text", "line", "message"), [
    (f"{HEAD}\nx = tensor('x'\n", 3, "this is not Python"),
    (f"{HEAD}\nreturn 1\n", 3, "this is not Python"),
    ("x = 'a\0b'", 1, "this is not Python"),
    (f"{HEAD}\nx = tensor('x')\n\ndef f():\n    return 1 / 0\n\nmine = Loss(f())\n", 6, "ZeroDivisionError: division by zero"),
    (f"{HEAD}import no_such_module\n", 2, "No module named 'no_such_module'"),
    (f"{HEAD}x = tensor('x')\nmine = Loss(x, reductions=('median',))\n", 3, "the reduction 'median' is not known"),
    (f"{HEAD}x = tensor('x')\nvalue = x**2\n", None, "my_loss = Loss("),
    (f"{HEAD}x = tensor('x')\n_mine = Loss(x)\n", None, "no loss in this file"),
    (f"{HEAD}x = tensor('x')\ny = tensor('z')\nmine = Loss(x)\n", 3, "'z' is declared and used by no loss"),
    (f"{HEAD}x = tensor('x')\ndelta = param('delta', default=1)\nmine = Loss(x)\n", 3, "'delta' is declared and used by no"),
    ("from losscomp.language import *\nc = axis('c')\nx, w = tensor('x'), tensor('w', c)\nmine = Loss(x)\n", 3, "'w' is decl"),
])
def test_errors_say_where_and_how_to_mend(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    path = write(tmp_path, "mine.py", text)
    with pytest.raises(DefinitionError) as caught:
        load_file(path)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert message in str(caught.value) and caught.value.repair


def test_what_only_the_mean_or_another_loss_uses_is_used(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", f"{HEAD}x, y, w = map(tensor, 'xyw')\na = Loss(w * x, mean_over=w)\nb = Loss(y)\n")
    assert [d.name for d in load_file(path)] == ["a", "b"]


def test_two_losses_of_one_name(tmp_path: Path) -> None:
    first, second = (write(tmp_path, f"{k}.py", f"{HEAD}mine = Loss(tensor('x'))\n") for k in "ab")
    with pytest.raises(DefinitionError, match="two losses named 'mine'") as caught:
        load(tmp_path)
    assert str(first) in str(caught.value) and str(second) in str(caught.value)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for load_it, path in ((load, tmp_path / "none"), (load_file, tmp_path / "none.py"), (load_file, tmp_path)):
        with pytest.raises(LosscompError, match="there is no such") as caught:
            load_it(path)
        assert caught.value.where == str(path) and caught.value.repair
    with pytest.raises(DefinitionError, match="no definition in this folder"):
        load(tmp_path)


def test_later_errors_know_the_place(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", f"import sympy\n{HEAD}x = tensor('x')\nmine = Loss(sympy.Max(x, 0))\n")
    with pytest.raises(CheckError) as caught:
        check(load(path)["mine"])                                # type: ignore[arg-type]
    assert caught.value.where == f"{path}:4"


# The package's own definitions

def test_all_are_there_and_short() -> None:
    dialects = [name for name, d in BUILTIN.items() if forms_of(d)[0].dialect_of]
    assert len(LIKE_TORCH) >= 21 and len(dialects) >= 21 and sorted(NAMES) == NAMES
    for path in builtin_definitions().rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path
    assert all(BUILTIN[name].doc for name in BUILTIN) and all(BUILTIN[name].like for name in dialects)
    assert all(BUILTIN[name].module for name in LIKE_TORCH)


@pytest.mark.parametrize("name", NAMES)
def test_each_compiles_to_smooth_atoms(name: str) -> None:
    for form in forms_of(BUILTIN[name]):
        compiled = compile_loss(form)
        assert len(compiled) == len(check(form))
        for variant in compiled:
            by_design = {p.name for p in variant.form.params} & {"log_input", "log_target"}              # exp(input)
            by_design |= {p.name for p in variant.form.params} & {"gamma", "temperature"}                # never above 1
            by_design |= {t.name for t in variant.form.inputs} & {"log_probs", "std"}                    # a probability; a density
            assert by_design or not variant.smooth.value.has(sp.exp), "an exponential that overflows"


MORE = {"ctc_loss": ["normalized"]}                                # arguments behind those of torch


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_signatures_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="agreement with PyTorch is NOT TESTED: PyTorch is not installed")
    definition = BUILTIN[name]
    assert definition.like == f"torch.nn.functional.{name}" and hasattr(torch.nn, module_name(definition))
    peer = inspect.signature(getattr(torch.nn.functional, name)).parameters
    words = [word for word in definition.signature.split() if word != "*"]
    assert words[:len(peer)] == list(peer) and words[len(peer):] == MORE.get(name, [])
    for form in forms_of(definition):
        for checked in check(replace(form, name="")):
            for p in checked.params:
                if p.name in MORE.get(name, []) or p.record.reduction:                   # no argument of torch's
                    continue
                assert float(p.record.default) == float(peer[p.name].default), p.name
            for tensor in checked.inputs:
                assert (tensor.record.default is None) == (peer[tensor.name].default is inspect.Parameter.empty), tensor.name


# A formula, one sample at a time, by its meaning

RELATIONS: dict[type, Callable[[Any, Any], Any]] = {
    sp.Eq: np.equal, sp.Ne: np.not_equal, sp.StrictLessThan: np.less, sp.LessThan: np.less_equal,
    sp.StrictGreaterThan: np.greater, sp.GreaterThan: np.greater_equal, sp.And: np.logical_and,
}
FUNCTIONS: dict[type, Callable[[Any], Any]] = {sp.exp: np.exp, sp.log: np.log, sp.floor: np.floor}
REDUCTIONS: dict[str, Callable[[Any], Any]] = {"sum": np.sum, "max": np.max, "logsumexp": np.logaddexp.reduce}
meaning = cache(atoms.meaning)


@dataclass(frozen=True)
class Sample:
    """Everything that the formula of one sample depends on. Evaluates a node by its meaning, in float64."""

    arrays: dict[str, np.ndarray]
    params: dict[str, float]
    n: int
    sizes: dict[str, int]
    indices: dict[nodes.Index, int] = field(default_factory=dict)

    def at(self, index: nodes.Index, position: int) -> Sample:
        return replace(self, indices={**self.indices, index: position})

    def __call__(self, e: Any) -> Any:
        match e:
            case nodes.Index():
                return self.indices[e]
            case nodes.Axis():
                return self.sizes[e.name]
            case nodes.Param():
                return self.params[e.name]
            case nodes.Load():
                return self.load(e)
            case nodes.Delta(args=(a, b)):
                return np.float64(self(a) == self(b))
            case nodes.Where(args=(condition, a, b)):
                return self(a if self(condition) else b)
            case nodes.Reduce():
                return REDUCTIONS[e.op]([self.at(e.bound, k)(e.body) for k in range(self.sizes[e.bound.axis.name])])
            case nodes.Named() | nodes.Stated() | nodes.StopGradient() | nodes.StraightThrough():
                return self(e.body)
            case sp.Add():
                return sum(map(self, e.args))
            case sp.Mul():
                return np.prod(list(map(self, e.args)))
            case sp.Pow():
                return np.power(np.float64(self(e.base)), self(e.exp))
        if atoms.is_atom(e):
            return self(meaning(e))
        if type(e) in RELATIONS:
            return RELATIONS[type(e)](*map(self, e.args))
        return FUNCTIONS[type(e)](self(e.args[0])) if type(e) in FUNCTIONS else np.float64(e)

    def load(self, e: nodes.Load) -> Any:
        record = e.tensor.record
        if record.name not in self.arrays:
            assert record.default is not None, record.name
            return np.float64(record.default)
        place = ((self.n,) if record.per_sample else ()) + tuple(int(self(i)) for i in e.index)
        value = self.arrays[record.name][place]
        return int(value) if record.integer else np.float64(value)


def variant(name: str, arrays: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[Checked, dict[str, float]]:
    """The form and variant of a loss that arguments choose, and the value of every parameter."""
    kinds = {k: v.dtype.kind == "i" for k, v in arrays.items()}
    variants = next(vs for vs in variants_of(name) if all(kinds.get(t.name, False) == t.record.integer for t in vs[0].inputs))
    params = {p.name: options.get(p.name, p.record.default) for p in variants[0].params}
    settings = {p.name: next((s for s in p.record.special if s == exact(params[p.name])), None)
                for p in variants[0].params if p.record.special}
    return next(v for v in variants if dict(v.settings) == settings), params


def exact(value: Any) -> Any:
    """A number as SymPy has it in a definition: 2, where the caller says 2.0."""
    return sp.Integer(value) if isinstance(value, float) and value.is_integer() else sp.sympify(value)


@cache
def variants_of(name: str) -> list[list[Checked]]:
    """The variants of each form of a loss."""
    return [check(form) for form in forms_of(BUILTIN[name])]


@cache
def gradient_of(value: sp.Expr, tensor: nodes.Tensor) -> tuple[sp.Expr, tuple[nodes.Index, ...]]:
    return gradient(value, tensor)


def samples(checked: Checked, arrays: dict[str, np.ndarray], params: dict[str, float]) -> list[Sample]:
    """Every sample of a batch."""
    sizes = {axis.name: arrays[t.name].shape[-1] for t in checked.inputs if t.name in arrays for axis in t.record.axes}
    batch = next(len(arrays[t.name]) for t in checked.inputs if t.record.per_sample)
    return [Sample(arrays, params, n, sizes) for n in range(batch)]


# Arguments: random ones, and those at kinks and ends of domains

N, C = 8, 4


def ends(*kinks: float) -> np.ndarray:
    """Numbers that matter, and random ones behind them, others for other numbers."""
    return np.concatenate([kinks, np.random.default_rng(int(10 * sum(np.abs(kinks)))).normal(size=N - len(kinks)) * 2])


def probabilities(*kinks: float) -> np.ndarray:
    return np.concatenate([kinks, np.random.default_rng(len(kinks)).uniform(0.05, 0.95, N - len(kinks))])


def rows(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, C))


def arguments() -> dict[str, dict[str, np.ndarray]]:
    """Tensors for each loss, optional ones too."""
    rng = np.random.default_rng(0)
    weight, labels = rng.uniform(0.5, 2, N), rng.integers(0, C, N)
    error = {"input": ends(1, 2, 3, 1, 0), "target": ends(1, 1, 1, 1.5), "weight": weight}         # at 0, at delta, beyond
    classes = {"input": rows(1), "weight": rng.uniform(0.5, 2, C)}
    pair, apart, close = rows(2), rows(3), rows(4)
    pair[0], apart[0], close[0] = 0, np.eye(C)[0], 0             # at the margin, nearest to two, and a zero vector
    apart[1], pair[2] = 0, apart[2]
    pair[3], apart[3] = np.eye(C)[:2]
    hinge = {"input1": ends(0, 1, 2), "input2": ends(0, 1.5, 1), "target": np.array([1.0, -1, 1, -1, 2, 0, 1, -1])}
    return {
        "l1_loss": error, "mse_loss": error, "huber_loss": error,
        "smooth_l1_loss": {k: error[k] for k in ("input", "target")},
        "poisson_nll_loss": {"input": np.abs(ends(0, 2, 1)) + 0.01, "target": np.abs(ends(0.5, 1, 1.5, 3))},
        "gaussian_nll_loss": {"input": ends(), "target": rows(9)[:, 0], "var": np.abs(ends(0, 1e-7, 1e-6, 0.3))},
        "binary_cross_entropy": {"input": probabilities(0, 1, 0, 1, 1e-300), "weight": weight,
                                 "target": probabilities(0, 1, 1, 0)},
        "binary_cross_entropy_with_logits": {"input": ends(0, -4, 4), "target": probabilities(0, 1, 2, -1), "weight": weight,
                                             "pos_weight": weight[::-1].copy()},
        "soft_margin_loss": {"input": ends(0, 9, -9), "target": np.array([1.0, -1, -1, 1, 0, 1, -1, 2])},
        "multilabel_soft_margin_loss": {"input": rows(1), "target": (rows(2) > 0).astype(float), "weight": np.abs(rows(3))},
        "nll_loss": {**classes, "target": labels},
        "cross_entropy": {**classes, "target": labels},
        "cross_entropy, probabilities": {**classes, "target": np.abs(rows(2))},
        "kl_div": {"input": -np.abs(rows(1)).ravel(), "target": np.abs(rows(2)).ravel()},
        "hinge_embedding_loss": {"input": ends(1, 1, 0, 0, -2), "target": np.array([1.0, -1, 1, -1, 1, -1, 0, 2])},
        "margin_ranking_loss": hinge,
        "cosine_embedding_loss": {"input1": pair, "input2": apart, "target": np.array([1.0, -1, 1, -1, 0, 1, -1, 2])},
        "triplet_margin_loss": {"anchor": pair, "positive": close, "negative": apart},
    }


def product(**choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    """The defaults, and every combination of options."""
    return [{}, *(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))]


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "smooth_l1_loss": product(beta=(0.0, 0.5, 1.0)),
    "huber_loss": product(delta=(0.5, 1.0, 2.0)),
    "poisson_nll_loss": product(log_input=(True, False), full=(True, False), eps=(1e-8, 0.1)),
    "gaussian_nll_loss": product(full=(True, False), eps=(1e-6, 0.5)),
    "nll_loss": product(ignore_index=(1, -100)),
    "cross_entropy": product(ignore_index=(1, -100), label_smoothing=(0.0, 0.3, 1.0)),
    "cross_entropy, probabilities": product(label_smoothing=(0.0, 0.3, 1.0)),
    "kl_div": product(log_target=(True, False)),
    "hinge_embedding_loss": product(margin=(0.5, 1.0, -1.0)),
    "margin_ranking_loss": product(margin=(0.5, 1.0)),
    "cosine_embedding_loss": product(margin=(0.0, 0.5, -0.2)),
    "triplet_margin_loss": product(p=(0.0, 0.5, 1.0, 2.0, 3.0, float("inf")), swap=(True, False), eps=(0.0, 0.1)),
}


def cases() -> Iterator[Any]:
    """Every loss with every choice of its options, with and without its optional tensors."""
    for key, arrays in arguments().items():
        optional = [k for k in ("weight", "pos_weight") if k in arrays]
        for options in OPTIONS.get(key, [{}]):
            for keep in itertools.product((True, False), repeat=len(optional)):
                left_out = {k for k, kept in zip(optional, keep, strict=True) if not kept}
                given = {k: v for k, v in arrays.items() if k not in left_out}
                words = [f"{k}={v}" for k, v in options.items()] + [k for k in given if k in optional]
                yield pytest.param(key.split(",")[0], given, options, id=" ".join([key, *words]))


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize(("name", "arrays", "options"), list(cases()))
def test_values_and_mean_are_those_of_torch(name: str, arrays: dict[str, np.ndarray], options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="agreement with PyTorch is NOT TESTED: PyTorch is not installed")
    checked, params = variant(name, arrays, options)
    tensors = {k: torch.tensor(v) for k, v in arrays.items()}
    expected, mean = (getattr(torch.nn.functional, name)(**tensors, **options, reduction=r).numpy() for r in ("none", "mean"))
    with np.errstate(all="ignore"):
        batch = samples(checked, arrays, params)
        values, weights = (np.array([sample(formula) for sample in batch]) for formula in (checked.value, checked.weight))
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(values.sum() / weights.sum(), mean, rtol=1e-12)


# Inputs by which torch has no derivative, or another one at the ends of the domain: the notes of the definitions say so.
NOT_COMPARED = {"weight", "pos_weight", "target of binary_cross_entropy", "target of soft_margin_loss"}


@pytest.mark.parametrize(("name", "arrays", "options"), list(cases()))
def test_gradients_are_those_of_torch(name: str, arrays: dict[str, np.ndarray], options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="agreement with PyTorch is NOT TESTED: PyTorch is not installed")
    checked, params = variant(name, arrays, options)
    moving = [t for t in checked.differentiable if t.name in arrays and not {t.name, f"{t.name} of {name}"} & NOT_COMPARED]
    tensors = {k: torch.tensor(v) for k, v in arrays.items()}
    for t in moving:
        tensors[t.name].requires_grad_()
    getattr(torch.nn.functional, name)(**tensors, **options, reduction="sum").backward()
    for t in moving:
        formula, cell = gradient_of(checked.value, t)
        with np.errstate(all="ignore"):
            grad = [place(formula) for sample in samples(checked, arrays, params) for place in cells(sample, cell)]
        expected = tensors[t.name].grad
        expected = np.zeros_like(grad) if expected is None else expected.numpy().ravel()
        np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-11, err_msg=t.name)


def cells(sample: Sample, free: tuple[nodes.Index, ...]) -> list[Sample]:
    """The sample at every position of the free indices."""
    for index in free:
        return [sample.at(index, k) for k in range(sample.sizes[index.axis.name])]
    return [sample]


@pytest.mark.parametrize(("name", "input", "target"), [
    ("binary_cross_entropy", [0, 1, 0, 0.3, 0.9, 1e-300], [1, 0, 0, 1, 0.2, 0.5]),
    ("huber_loss", [0, 1, 2, -1, 3], [0, 0.5, 1, 0, 0]),
    ("smooth_l1_loss", [0, 1, 2, -1, 3], [0, 0.5, 1, 0, 0]),
])
def test_second_derivatives_at_joints_and_clamps_are_those_of_torch(name: str, input: list[float], target: list[float]) -> None:
    torch = pytest.importorskip("torch", reason="agreement with PyTorch is NOT TESTED: PyTorch is not installed")
    arrays = {"input": np.array(input, dtype=float), "target": np.array(target, dtype=float)}
    checked, params = variant(name, arrays, {})
    by = next(t for t in checked.inputs if t.name == "input")
    formula, _ = gradient(gradient(checked.value, by)[0], by)
    x = torch.tensor(arrays["input"], requires_grad=True)
    loss = getattr(torch.nn.functional, name)(x, torch.tensor(arrays["target"]), reduction="sum")
    slope, = torch.autograd.grad(loss, x, create_graph=True)
    expected, = torch.autograd.grad(slope.sum(), x)
    curvature = [sample(formula) for sample in samples(checked, arrays, params)]
    np.testing.assert_allclose(curvature, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("key", arguments())
def test_nan_passes(key: str) -> None:
    name, arrays = key.split(",")[0], arguments()[key]
    checked, params = variant(name, arrays, {})
    for tensor in checked.wrt:
        spoiled = {**arrays, tensor.name: np.full_like(arrays[tensor.name], np.nan)}
        values = [sample(checked.value) for sample in samples(checked, spoiled, params)]
        if name == "cosine_embedding_loss":                      # a target that is neither 1 nor -1 leaves the sample out
            values = [v for v, t in zip(values, arrays["target"], strict=True) if abs(t) == 1]
        assert np.isnan(values).all()


def test_a_divergence_from_a_target_without_mass_is_zero() -> None:
    compiled = compile_loss(BUILTIN["kl_div"])[-1]               # type: ignore[arg-type]
    arrays = {"input": np.array([-1.0, -1.0]), "target": np.array([0.0, 0.5])}
    values = [sample(compiled.smooth.value) for sample in samples(compiled.form, arrays, {})]
    np.testing.assert_allclose(values, [0, 0.5 * np.log(0.5) + 0.5])

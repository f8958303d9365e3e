"""The usual call, past Python: it gives what the Python path gives, to the last bit, and leaves to that whatever is not usual."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from losscomp import compiler
from losscomp.bench import arrays_of
from losscomp.catalogue import builtin_definitions, load

torch = pytest.importorskip("torch", reason="the usual call of the torch target is NOT TESTED: PyTorch is not installed")

from torchcases import REDUCTIONS, cases, labels, promote, results, some  # noqa: E402

CASES = cases()
DEFINITIONS = load(builtin_definitions())
WHY = compiler.missing_quick()
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"NOT CHECKED: the usual call past Python: {WHY}")
Path_ = Callable[..., Any]


@pytest.fixture(scope="module")
def runtime(T: Any) -> ModuleType:
    """The runtime of the library, with what is tested here."""
    found = importlib.import_module("losslib.torch._runtime")
    assert found.QUICK is not None, "the library has no _quick for this torch: run `make`"
    return found


@pytest.fixture
def by_python(runtime: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Path_]]:
    """A loss as it is where nothing was compiled for this torch."""
    def slow(loss: Any) -> Path_:
        def call(*args: Any, **more: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(loss, "_quick", runtime.nothing)
                return loss(*args, **more)
        return call
    yield slow


def warmed(loss: Any, **given: Any) -> Path_:
    """A loss that has seen the layout of these tensors."""
    loss(**{k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in given.items()})
    return loss  # type: ignore[no-any-return]


def is_usual(runtime: ModuleType, loss: Any, given: dict[str, Any], reduction: str, **more: Any) -> bool:
    """Are these tensors, and numbers, as kernels want them?"""
    tensors = tuple(given.get(n) for n in loss.spec.inputs)
    defaults = {p.name: p.default for f in loss.spec.forms for p in f.parameters}
    scalars = tuple(more.get(n, defaults[n]) for n in loss.spec.parameters)
    _, arranged, _, kind = runtime.arrange(loss.spec, tensors, scalars, reduction)
    return kind is None and all(a is b for a, b in zip(arranged, tensors, strict=True))


def is_quick(value: Any) -> bool:
    """Does a value come from the path past Python? Its step in the graph is no object of Python's."""
    return not isinstance(value.grad_fn, torch.autograd.function.BackwardCFunction)


def equal(mine: Any, other: Any) -> bool:
    """The same bits, NaN included, and the same layout."""
    return (mine.dtype, mine.shape, mine.stride()) == (other.dtype, other.shape, other.stride()) and torch.equal(
        mine.nan_to_num(12345.0), other.nan_to_num(12345.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits(name: str, dtype: Any, T: Any, runtime: ModuleType, by_python: Any) -> None:
    """Value, gradients times an upstream gradient, and second derivatives, of each reduction."""
    case = CASES[name]
    loss = getattr(T, case.loss)
    for reduction in REDUCTIONS:
        given = promote(case, dtype)
        warmed(loss, **given, **case.more, reduction=reduction)
        value = loss(**given, **case.more, reduction=reduction)
        shared = reduction == "none" and any(given[k].ndim < value.ndim for k in case.moving)       # the upstream of each sample is needed
        assert is_quick(value) == (is_usual(runtime, loss, given, reduction, **case.more) and not shared), reduction
        mine = results(loss, case, reduction, dtype)
        other = results(by_python(loss), case, reduction, dtype)
        assert mine.keys() == other.keys() and [k for k in mine if not equal(mine[k], other[k])] == []
        inputs = [given[k] for k in case.moving]
        for graph in (True, False):                             # times 1, and what is kept given away
            found = torch.autograd.grad(value, inputs, torch.ones_like(value), retain_graph=graph)
            again = by_python(loss)(**given, **case.more, reduction=reduction)
            assert not is_quick(again)
            assert all(map(equal, found, torch.autograd.grad(again, inputs, torch.ones_like(again))))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_loss(name: str, T: Any, by_python: Any) -> None:
    """Each loss of the catalogue goes this way as soon as its tensors need no change, and gives the same bits."""
    loss = getattr(T, name)
    arrays, wrt = arrays_of(DEFINITIONS[name], 40, 5, "float64")
    given = {k: torch.from_numpy(a).requires_grad_(k in wrt) for k, a in arrays.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            warmed(loss, **given)
        except T.LossError as error:
            pytest.skip(f"NOT CHECKED: {name} refuses these arrays: {error}")
        mine, other = loss(**given), by_python(loss)(**given)
    assert not is_quick(other)
    inputs = [given[k] for k in wrt if k in given]
    assert equal(mine, other)
    assert all(map(equal, torch.autograd.grad((3 * mine).sum(), inputs), torch.autograd.grad((3 * other).sum(), inputs)))
    assert is_quick(mine)


CALL: dict[str, Any] = {"input": some(7, 5).float(), "target": labels(7, below=5)}    # a shape of its own


class Own(torch.Tensor):
    """A subclass."""


class Function(torch.overrides.TorchFunctionMode):
    """A mode that sees functions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


class Dispatch(torch.utils._python_dispatch.TorchDispatchMode):
    """A mode that sees operators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "functions": Function, "operators": Dispatch,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "hooks for saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    "a profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
}
TENSORS: dict[str, Callable[[Any], Any]] = {
    "a subclass": lambda t: t.as_subclass(Own), "a list": lambda t: t.tolist(), "another type": lambda t: t.double(),
    "half": lambda t: t.half(), "another shape": lambda t: t[:, :4], "the meta device": lambda t: t.to("meta"),
    "negated, lazily": lambda t: torch._neg_view(t),
}


def quick(T: Any, input: Any, target: Any, reduction: str = "mean", ignored: Any = -100) -> Any:
    """What the path past Python says to a call; None if it is not for it."""
    return T.nll_loss._quick((input, target, None), (ignored,), reduction)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_active_goes_by_python(mode: str, T: Any) -> None:
    x = CALL["input"].clone().requires_grad_()
    warmed(T.nll_loss, **CALL)
    expected = quick(T, x, CALL["target"])
    assert expected is not None
    with MODES[mode]():
        assert quick(T, x, CALL["target"]) is None
        found = T.nll_loss(x, CALL["target"])
    assert equal(found.detach(), expected.detach()) and quick(T, x, CALL["target"]) is not None


@pytest.mark.parametrize("kind", TENSORS)
def test_other_tensors_go_by_python(kind: str, T: Any) -> None:
    warmed(T.nll_loss, **CALL)
    assert quick(T, **CALL) is not None and quick(T, TENSORS[kind](CALL["input"]), CALL["target"]) is None


def test_other_scalars_and_words_go_by_python(T: Any) -> None:
    given = {"input": some(8, 5), "target": labels(8, below=5, ignored=False)}
    warmed(T.nll_loss, **given)
    assert quick(T, **given) is not None and quick(T, **given, ignored=-100.0) is not None
    assert [quick(T, **given, ignored=other) for other in (-99, -100.5, float("nan"), "x")] == [None] * 4
    assert [quick(T, **given, reduction=other) for other in ("medium", None)] == [None] * 2  # type: ignore[arg-type]
    with pytest.raises(T.LossError):
        T.nll_loss(**given, reduction="medium")
    x, y = some(3, 4), some(3, 4, seed=1)
    assert T.huber_loss(x, y, delta=1.0) == T.huber_loss(x, y) != T.huber_loss(x, y, delta=0.5) == T.huber_loss(x, y, delta=0.5)
    with pytest.raises(T.LossError, match="delta"):
        T.huber_loss(x, y, delta=-1.0)


def test_transforms_go_by_python(T: Any) -> None:
    """torch.func, forward AD, batched gradients."""
    x, y = CALL["input"], CALL["target"]
    loss = warmed(T.nll_loss, **CALL)
    leaf = x.clone().requires_grad_()
    expected, = torch.autograd.grad(loss(leaf, y), leaf)
    assert torch.allclose(torch.func.grad(loss)(x, y), expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert quick(T, dual, y) is None
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(loss(dual, y)).tangent, expected.sum())
    value = loss(leaf, y)
    assert is_quick(value)
    rows, = torch.autograd.grad(value, leaf, torch.tensor([1.0, -2.0, 0.5]), is_grads_batched=True, retain_graph=True)
    assert torch.allclose(rows, torch.tensor([1.0, -2.0, 0.5])[:, None, None] * expected)
    up = torch.ones(()).requires_grad_()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones(()), torch.full((), 2.0))
        found, = torch.autograd.grad(value, leaf, dual, retain_graph=True)
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(found).tangent, 2 * expected)
    found, = torch.autograd.grad(value, leaf, up, create_graph=True)
    assert torch.equal(torch.autograd.grad(found.sum(), up)[0], expected.sum())


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any, T: Any) -> None:
    x = CALL["input"].clone().requires_grad_()
    warmed(T.nll_loss, **CALL)
    with mode():
        value = quick(T, x, CALL["target"])
    assert value.requires_grad == (mode is nullcontext) and value.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_kept_gradients_are_never_shared(reduction: str, T: Any) -> None:
    """What backward gives may be changed, and a graph that is kept gives the same again; one that is not gives an error."""
    x = CALL["input"].clone().requires_grad_()
    warmed(T.nll_loss, **CALL, reduction=reduction)
    value = T.nll_loss(x, CALL["target"], reduction=reduction)
    up = torch.ones_like(value)
    first, = torch.autograd.grad(value, x, up, retain_graph=True)
    kept = first.clone()
    first.zero_()
    second, = torch.autograd.grad(value, x, up, retain_graph=True)
    assert torch.equal(second, kept) and torch.equal(torch.autograd.grad(value, x, 2 * up)[0], 2 * kept) and torch.equal(second, kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, x, up)
    value = T.nll_loss(x, CALL["target"], reduction=reduction)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, x, up)


def test_what_samples_share(T: Any, by_python: Any) -> None:
    """The gradient by weights of classes adds samples up: where each sample has an upstream gradient, that is needed first."""
    w = some(5, low=0.5, seed=2).float().requires_grad_()
    for reduction in ("none", "mean"):
        given = {**CALL, "weight": w, "reduction": reduction}
        warmed(T.nll_loss, **given)
        value, other = T.nll_loss(**given), by_python(T.nll_loss)(**given)
        up = torch.arange(1.0, value.numel() + 1).reshape(value.shape)
        assert is_quick(value) == (reduction == "mean")
        assert equal(torch.autograd.grad(value, w, up)[0], torch.autograd.grad(other, w, up)[0])


def test_sets_of_labels(T: Any, by_python: Any) -> None:
    """Counted here too: labels after the end, labels that are there twice, labels out of range."""
    loss = T.multilabel_margin_loss
    x, y = some(3, 4).requires_grad_(), torch.tensor([[1, 1, -1, 2], [-1, 0, 0, 3], [3, 2, 1, 0]])
    warmed(loss, input=x, target=y)
    value, other = loss(x, y), by_python(loss)(x, y)
    assert is_quick(value) and equal(value, other)
    assert equal(*(torch.autograd.grad(v, x)[0] for v in (value, other)))
    for bad in (4, -2):
        wrong = y.clone()
        wrong[1, 2] = bad
        with pytest.raises(T.LossError, match=f"is {bad}"):
            loss(x, wrong)


def test_values_that_are_refused(T: Any) -> None:
    """A layout that is known, with an index out of range: the error is that of the Python path."""
    warmed(T.nll_loss, **CALL)
    wrong = CALL["target"].clone()
    wrong[2] = 9
    assert quick(T, CALL["input"], wrong) is None
    with pytest.raises(T.LossError, match=r"target\[2\] is 9"):
        T.nll_loss(CALL["input"], wrong)


def test_compiled_autograd(T: Any) -> None:
    x = CALL["input"].clone().requires_grad_()
    warmed(T.nll_loss, **CALL)
    value = T.nll_loss(x * 1, CALL["target"])
    assert is_quick(value)
    expected, = torch.autograd.grad(2 * value, x, retain_graph=True)
    with warnings.catch_warnings(), torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        warnings.simplefilter("ignore")
        (2 * value).backward()
    assert torch.allclose(x.grad, expected)


def test_only_for_the_torch_that_it_was_made_for(T: Any, runtime: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another version, another commit, or a file that is none: then there is no quick path, and no error."""
    loading = importlib.import_module("losslib.torch._load")
    assert loading.quick(runtime.backward) is not None
    for place, name in ((torch, "__version__"), (torch.version, "git_version")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, "0.0.0")
            assert loading.quick(runtime.backward) is None
    found = next(loading.HERE.glob("_quick.*.so"))
    assert compiler.torch_stamp() in found.name
    (tmp_path / found.name).write_bytes(b"no library")
    (tmp_path / "_operators.so").symlink_to(loading.binaries()[0])
    monkeypatch.setattr(loading, "HERE", tmp_path)
    assert loading.quick(runtime.backward) is None

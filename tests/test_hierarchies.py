"""Losses over classes reached by choices: the adaptive softmax against PyTorch's, definitions of one's own against the product of
softmaxes written out, and what definitions and calls are told when they are wrong."""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from losscomp import catalogue, cli, compose, emit, show
from losscomp.catalogue import builtin_definitions, load_all, load_file
from losscomp.errors import LosscompError
from losscomp.hierarchy import Hierarchy

torch = pytest.importorskip("torch", reason="the adaptive softmax beside PyTorch's is NOT CHECKED: PyTorch is not installed")

NAME = "adaptive_log_softmax_with_loss"
SIZES: list[dict[str, Any]] = [
    {"cutoffs": [2]}, {"cutoffs": [3, 5, 9], "head_bias": True}, {"cutoffs": [1, 2, 3], "div_value": 2},
    {"cutoffs": [19], "div_value": 1.5, "head_bias": True}, {"cutoffs": [4, 10, 15], "div_value": 0.7},
    {"cutoffs": (6, 18), "div_value": 9.0}]
TOLERANCE = {torch.float64: (1e-12, 1e-14), torch.float32: (2e-5, 2e-6)}
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def pair(T: Any, *sizes: Any, **more: Any) -> tuple[Any, Any]:
    """PyTorch's module and ours, made with the same seed."""
    made = []
    for home in (torch.nn, T):
        torch.manual_seed(0)
        made.append(home.AdaptiveLogSoftmaxWithLoss(*sizes, **more))
    return made[0], made[1]


def close(ours: Any, theirs: Any, dtype: Any) -> None:
    """The same to a few units in the last place; None for None."""
    assert (ours is None) == (theirs is None)
    if theirs is not None:
        rtol, atol = TOLERANCE[dtype]
        torch.testing.assert_close(torch.as_tensor(ours), theirs.detach(), rtol=rtol, atol=atol, equal_nan=True)


def derivatives(module: Any, input: Any, loss: Any) -> tuple[list[Any], list[Any]]:
    """The gradients by input and parameters, and those of the sum of their squares."""
    given = [input, *module.parameters()]
    first = torch.autograd.grad(loss, given, create_graph=True, allow_unused=True)
    return list(first), list(torch.autograd.grad(sum((g**2).sum() for g in first if g is not None), given, allow_unused=True))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_all_is_as_in_pytorch(T: Any, targets: dict[str, Any], sizes: dict[str, Any], dtype: Any) -> None:
    theirs, ours = pair(T, 8, 20, **sizes, dtype=dtype)
    assert repr(ours) == repr(theirs)
    assert [(k, v.tolist()) for k, v in ours.state_dict().items()] == [(k, v.tolist()) for k, v in theirs.state_dict().items()]
    public = lambda m: {k: v for k, v in vars(m).items() if not k.startswith("_")}
    assert public(ours) == public(theirs)
    for module in (theirs, ours):
        torch.manual_seed(1)
        module.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(2)
    batch = torch.randn(40, 8, dtype=dtype) * 3
    for rows, classes in ((slice(None), torch.randint(0, 20, (40,)).tolist()), (0, 17), (1, 0), (slice(1), [19]), (slice(3), [0, 0, 0]),
                          (slice(0), [])):
        input, target = batch[rows].requires_grad_(), torch.tensor(classes, dtype=torch.long)
        (out, loss), (wanted, mean) = ours(input, target), theirs(input, target)
        assert out.shape == wanted.shape and out.dtype == dtype
        close(out.detach(), wanted, dtype)
        close(loss.detach(), mean, dtype)
        if not len(target.reshape(-1)):
            continue
        for mine, other in zip(derivatives(ours, input, loss), derivatives(theirs, input, mean), strict=True):
            for a, b in zip(mine, other, strict=True):
                close(a, b, dtype)
        upstream = torch.arange(1.0, 1 + target.numel(), dtype=dtype).reshape(target.shape)
        through, other = (torch.autograd.grad(module(input, target).output, input, upstream)[0] for module in (ours, theirs))
        close(through, other, dtype)
        check_arrays(T, targets, theirs, input.detach(), target, sizes, dtype)
    close(ours.log_prob(batch).detach(), theirs.log_prob(batch), dtype)
    assert torch.equal(ours.predict(batch), theirs.predict(batch)) and torch.equal(ours.predict(batch), ours.log_prob(batch).argmax(1))


def check_arrays(T: Any, targets: dict[str, Any], theirs: Any, input: Any, target: Any, sizes: dict[str, Any], dtype: Any) -> None:
    """The functions of parameters, on every target."""
    parameters = {name: p.detach() for name, p in theirs.named_parameters()}
    given = input.clone().requires_grad_()
    wanted = theirs(given, target)
    exact = torch.autograd.grad(wanted.loss, [given, *theirs.parameters()], allow_unused=True)
    grads = dict(zip(["input", *parameters], exact, strict=True))
    function = getattr(T, NAME)
    found = function(input, target, parameters, 8, 20, **sizes)
    close(found.output, wanted.output, dtype)
    close(found.loss, wanted.loss, dtype)
    arrays = {name: p.numpy() for name, p in parameters.items()}
    for target_of in targets.values():
        function = getattr(target_of, NAME)
        assert list(function.shapes(8, 20, **sizes).items()) == [(name, tuple(p.shape)) for name, p in parameters.items()]
        call = (input.numpy(), target.numpy(), arrays, 8, 20)
        (out, loss), by = function.value_and_grad(*call, **sizes, upstream=2.0)
        assert function(*call, **sizes).loss == loss and list(by) == list(grads)
        close(out, wanted.output, dtype)
        close(loss, wanted.loss, dtype)
        for name, grad in grads.items():
            close(by[name] / 2, torch.zeros(by[name].shape, dtype=dtype) if grad is None else grad, dtype)
        assert list(function.grad(*call, **sizes, wrt="input")) == ["input"]
        if input.ndim == 2:
            rows = (input.numpy(), arrays, 8, 20)
            close(function.log_prob(*rows, **sizes), theirs.log_prob(input), dtype)
            assert torch.equal(torch.as_tensor(function.predict(*rows, **sizes)), theirs.predict(input))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_parts_of_a_batch(T: Any, targets: dict[str, Any], dtype: Any) -> None:
    """Totals of parts, one of them without samples, added up and finished: value and gradients are those of the whole, by PyTorch."""
    sizes: dict[str, Any] = {"cutoffs": [3, 5, 9], "div_value": 2.0, "head_bias": True}
    theirs, ours = pair(T, 8, 20, **sizes, dtype=dtype)
    input, target = torch.randn(12, 8, dtype=dtype) * 3, torch.tensor([0, 3, 19, 1, 2, 4, 5, 8, 9, 12, 0, 7])
    names, parts = ["input", *dict(theirs.named_parameters())], (slice(0, 0), slice(0, 3), slice(3, 12))
    function, by_name = getattr(T, NAME), dict(theirs.named_parameters())
    arrays = {name: p.detach().numpy() for name, p in by_name.items()}
    call = lambda p: (input[p].numpy(), target[p].numpy(), arrays, 8, 20)
    for reduction, times in (("mean", 1), ("sum", 12)):
        given = input.clone().requires_grad_()
        expected = theirs(given, target).loss * times
        wanted = dict(zip(names, torch.autograd.grad(expected, [given, *theirs.parameters()]), strict=True))
        with torch.no_grad():
            whole = sum(ours.state(input[p], target[p]) for p in parts)
        assert (whole.count, whole.batch, whole.weight) == (12, 12, 12)
        ours.zero_grad()
        for p in parts:
            given = input[p].clone().requires_grad_()
            value = function.finish(ours.state(given, target[p]).within(whole), reduction)
            value.backward()
            close(value.detach().to(dtype), expected, dtype)
            close(given.grad, wanted["input"][p], dtype)
        for name, p in ours.named_parameters():
            close(p.grad, wanted[name], dtype)
        total = function.finish(sum(function.state(input[p], target[p], by_name, 8, 20, **sizes) for p in parts), reduction)
        for name, grad in zip(names[1:], torch.autograd.grad(total, list(by_name.values())), strict=True):
            close(grad, wanted[name], dtype)
        for target_of in targets.values():
            loss = getattr(target_of, NAME)
            merged = sum(loss.state(*call(p), **sizes) for p in parts)
            close(torch.as_tensor(loss.finish(merged, reduction), dtype=dtype), expected, dtype)
            found = [loss.grad_within(merged, *call(p), **sizes, reduction=reduction) for p in parts]
            close(np.concatenate([f["input"] for f in found]), wanted["input"], dtype)
            for name in names[1:]:
                close(sum(f[name] for f in found), wanted[name], dtype)


def test_states_that_are_not_its_own(T: Any, targets: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"cutoffs": [3]}
    module = T.AdaptiveLogSoftmaxWithLoss(8, 20, **sizes)
    input, target = torch.randn(2, 8), torch.tensor([0, 1])
    mine, other = module.state(input, target), T.cross_entropy.state(input, target)
    for wrong in (lambda: getattr(T, NAME).finish(other), lambda: T.cross_entropy.finish(mine), lambda: mine + other):
        with pytest.raises(ValueError, match=r"is no state of this loss|cannot be merged"):
            wrong()
    for word in ("none", "batchmean"):
        with pytest.raises(ValueError, match=r"finishes no state\. Choose from mean, sum"):
            getattr(T, NAME).finish(mine, word)
        with pytest.raises(ValueError, match=r"finishes no state\. Choose from mean, sum"):
            getattr(targets["numpy"], NAME).finish(getattr(targets["numpy"], NAME).state(
                input.numpy(), target.numpy(), {n: p.detach().numpy() for n, p in module.named_parameters()}, 8, 20, **sizes), word)


def test_what_pytorch_tests_of_its_own(T: Any) -> None:
    """There is no ModuleInfo for it; these are the properties that its own tests hold it to."""
    made = T.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10, 15], div_value=2.0)
    assert [tuple(made.tail[k][1].weight.shape) for k in range(3)] == [(5, 8), (5, 4), (5, 2)] and made.head.weight.shape == (8, 16)
    for head_bias, scale in itertools.product((False, True), (0.0, 1.0)):
        torch.manual_seed(0)
        module, x = T.AdaptiveLogSoftmaxWithLoss(8, 10, [4, 8], div_value=2.0, head_bias=head_bias), torch.randn(64, 8).abs()
        log_p = module.log_prob(x)
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(64))
        for label in range(10):
            y = torch.full((64,), label)
            out, loss = module(x, y)
            torch.testing.assert_close(out, log_p.gather(1, y[:, None])[:, 0])
            torch.testing.assert_close(loss, torch.nn.functional.nll_loss(log_p, y))
        for rows in (slice(None, 4), slice(4, None), slice(0, 0)):       # the likeliest outcome is a class, a cluster, now this now that
            with torch.no_grad():
                module.head.weight.abs_()
                module.head.weight[rows] *= scale
            assert torch.equal(module.predict(x), module.log_prob(x).argmax(1))


def test_what_is_made_of_a_module(T: Any) -> None:
    _, module = pair(T, 8, 20, [4, 10], head_bias=True)
    x, y = torch.randn(5, 8), torch.tensor([0, 5, 12, 3, 19])
    wanted = module(x, y)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(input_=x, target_=y).output, wanted.output)
    assert pickle.loads(pickle.dumps(getattr(T, NAME))) is getattr(T, NAME)
    assert torch.equal(module(x, y.int()).output, wanted.output)
    assert T.AdaptiveLogSoftmaxWithLoss(8, 20, [4], device="meta").head.weight.is_meta
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(x, y).output, wanted.output, rtol=2e-2, atol=2e-2)
    half = copy.deepcopy(module).bfloat16()
    exact = copy.deepcopy(half).double()(x.bfloat16().double(), y).output
    assert half(x.bfloat16(), y).output.dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16(), y).output.double(), exact, rtol=2e-2, atol=2e-2)
    functional = lambda x, parameters: torch.func.functional_call(module, parameters, (x, y)).loss
    parameters = dict(module.named_parameters())
    by_module = torch.autograd.grad(module(x, y).loss, list(module.parameters()))
    for mine, other in zip(torch.func.grad(functional, argnums=1)(x, parameters).values(), by_module, strict=True):
        torch.testing.assert_close(mine, other)
    way = torch.randn(5, 8)
    rate = torch.func.jvp(lambda x: functional(x, parameters), (x,), (way,))[1]
    torch.testing.assert_close(rate, (torch.func.grad(functional)(x, parameters) * way).sum())


SORTED = ("cutoffs should be a sequence of unique, positive integers sorted in an increasing order, where each value is between 1 and "
          "n_classes-1")
MISTAKES: list[tuple[str, type[Exception], Any]] = [
    ("cutoffs should be a sequence of length larger than 0", ValueError, lambda make, m: make(8, 20, [])),
    *[(SORTED, ValueError, lambda make, m, cutoffs=cutoffs: make(8, 20, cutoffs))
      for cutoffs in ([4, 3], [0, 4], [4, 20], [4, 4], [2.5])],
    ("Input and target should have the same size in the batch dimension.", RuntimeError,
     lambda make, m: m(torch.ones(3, 8), torch.tensor([1, 2]))),
    ("1D target tensor expects 2D input tensors, but found inputs with size torch.Size([2, 8, 1])", RuntimeError,
     lambda make, m: m(torch.ones(2, 8, 1), torch.tensor([1, 2]))),
    ("0D target tensor expects 1D input tensors, but found inputs with size torch.Size([2, 8])", RuntimeError,
     lambda make, m: m(torch.ones(2, 8), torch.tensor(1))),
    ("0D or 1D target tensor expected, multi-target not supported", RuntimeError,
     lambda make, m: m(torch.ones(2, 8), torch.ones(2, 2, dtype=torch.long))),
    ("Target values should be in [0, 19], but values in range [0, 20] were found. ", RuntimeError,
     lambda make, m: m(torch.ones(2, 8), torch.tensor([0, 20]))),
    ("Target values should be in [0, 19], but values in range [-100, 2] were found. ", RuntimeError,
     lambda make, m: m(torch.ones(2, 8), torch.tensor([-100, 2]))),
    ("e", RuntimeError, lambda make, m: m(torch.ones(2, 8), torch.tensor([0.0, 1.0]))),
    ("mat1 and mat2 shapes cannot be multiplied", RuntimeError, lambda make, m: m(torch.ones(2, 7), torch.tensor([0, 11]))),
    (" ", IndexError, lambda make, m: m.log_prob(torch.ones(8))),
    (" ", IndexError, lambda make, m: m.predict(torch.ones(8))),
]


@pytest.mark.parametrize(("message", "kind", "call"), MISTAKES)
def test_mistakes_are_told_as_pytorch_tells_them(T: Any, message: str, kind: type[Exception], call: Any) -> None:
    for home in (torch.nn, T):
        with pytest.raises(kind, match=re.escape(message)):
            call(home.AdaptiveLogSoftmaxWithLoss, home.AdaptiveLogSoftmaxWithLoss(8, 20, [4, 10]))


def test_mistakes_in_arrays_and_parameters(T: Any, library: Any) -> None:
    function = getattr(library, NAME)
    made = {name: np.ones(shape) for name, shape in function.shapes(8, 20, [4]).items()}
    x, y = np.ones((2, 8)), np.array([0, 11])
    for message, call in {
        "The parameters lack tail.0.0.weight and have tail, which nothing reads. They are head.weight, tail.0.0.weight, tail.0.1.weight.":
            lambda: function(x, y, {"tail" if k == "tail.0.0.weight" else k: v for k, v in made.items()}, 8, 20, [4]),
        "head.weight has the shape (2, 8), and should have (5, 8).":
            lambda: function(x, y, {**made, "head.weight": np.ones((2, 8))}, 8, 20, [4]),
        "arrays of float16 are not supported": lambda: function(
            x.astype("f2"), y, {k: v.astype("f2") for k, v in made.items()}, 8, 20, [4]),
        "target holds integers, got float64": lambda: function(x, y / 1.0, made, 8, 20, [4]),
        "values in range [0, 20] were found": lambda: function(x, [0, 20], made, 8, 20, [4]),
        "there is no derivative by 'head'": lambda: function.grad(x, y, made, 8, 20, [4], wrt="head"),
        "in_features is an integer, at least 1, got 0": lambda: function(x, y, made, 0, 20, [4]),
        "div_value must be greater than 0, got 0": lambda: function(x, y, made, 8, 20, [4], 0),
        "expected, features of samples": lambda: function.log_prob(x[0], made, 8, 20, [4]),
    }.items():
        with pytest.raises(ValueError if "arrays" not in message and "holds" not in message else TypeError, match=re.escape(message)):
            call()
    with pytest.raises(RuntimeError, match=re.escape("head.weight has the shape (2, 8), and should have (5, 8).")):
        getattr(T, NAME)(torch.ones(2, 8), torch.tensor([0, 11]), {k: torch.ones(2, 8) for k in made}, 8, 20, [4])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_losses_keep_their_digits(targets: dict[str, Any], T: Any, dtype: str) -> None:
    """Products of whole numbers are exact, so that what is lost would be lost in the choices: log p near 0 and far from it."""
    mpmath = pytest.importorskip("mpmath", reason="the digits of small losses are NOT CHECKED: mpmath is not installed")
    head, hidden, tail = ([[9, -9, 3], [0, 1, 2], [-4, 4, 0]], [[5, -1, 0], [2, 2, 1]], [[2, 1], [-3, 1], [0, -4]])
    weights = {"head.weight": head, "tail.0.0.weight": hidden, "tail.0.1.weight": tail}
    parameters = {name: np.array(weight, dtype) for name, weight in weights.items()}
    rows, classes = [[1, -2, 0], [1, -1, 1], [2, 3, -1], [-3, 0, 1], [0, 4, 1]], range(5)
    with mpmath.workdps(60):
        dot = lambda rows, x: [sum(a * b for a, b in zip(row, x, strict=True)) for row in rows]
        log_softmax = lambda s: [k - mpmath.log(sum(mpmath.exp(j) for j in s)) for k in s]
        exact = []
        for x in rows:
            first, second = log_softmax(dot(head, x)), log_softmax(dot(tail, dot(hidden, x)))
            exact.append([float(v) for v in (first[0], first[1], *(first[2] + s for s in second))])
    sizes = (3, 5, [2], 1.5)
    x = np.array(rows, dtype)
    found = {f"{name} {what}": call for name, target in targets.items() for what, call in (
        ("log_prob", np.asarray(getattr(target, NAME).log_prob(x, parameters, *sizes))),
        ("output", np.stack([getattr(target, NAME)(x, np.full(5, c), parameters, *sizes).output for c in classes], 1)))}
    tensors = {name: torch.from_numpy(p) for name, p in parameters.items()}
    found["torch log_prob"] = getattr(T, NAME).log_prob(torch.from_numpy(x), tensors, *sizes).numpy()
    found["torch output"] = np.stack([getattr(T, NAME)(torch.from_numpy(x), torch.full((5,), c), tensors, *sizes).output.numpy()
                                      for c in classes], 1)
    truth = np.array(exact)
    assert -1e-7 < truth.max() < 0 and truth.min() < -30
    for name, values in found.items():
        ulp = np.spacing(np.abs(truth).astype(dtype)).astype("f8")
        assert np.max(np.abs(values - truth) / ulp) < 4, name


# Definitions of one's own

OWN = '''"""Words in groups, groups in topics; the last classes have no group."""
from losscomp.language import Choice, Hierarchy, axis, base, classes, each, layers, option, size

many, topics, groups, words, rest = map(size, ["many", "topics", "groups", "words", "rest"])
bias = option("bias", default=True)
t, g = axis("topic", extent=topics).index(), axis("group", extent=groups).index()
first = (t * groups + g) * words
loss = base("classification/cross_entropy.py").cross_entropy
topical = Choice(layers("topic", many, many // 2, bias=bias),
                 each(g, Choice(layers("group", many), classes(first, first + words))))
three_levels = Hierarchy(
    Choice(layers("root", many, bias=bias), each(t, topical),
           Choice(layers("others", many), classes(topics * groups * words, topics * groups * words + rest))),
    loss=loss)
two_levels = Hierarchy(
    Choice(layers("which", many), each(g, Choice(layers("word", many, bias=bias), classes(g * words, (g + 1) * words)))), loss=loss)
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, T: Any, targets: dict[str, Any]) -> Iterator[SimpleNamespace]:
    """The classes of the definitions above, as parts of the built library, whose cross-entropy they need."""
    tmp_path = tmp_path_factory.mktemp("own")
    path = tmp_path / "own.py"
    path.write_text(OWN)
    homes = [importlib.import_module(f"losslib.{name}") for name in ("compositions", "torch.compositions")]
    before = [list(home.__path__) for home in homes]
    found: dict[str, Any] = {}
    for definition in load_file(path):
        for file, text in emit.emit_loss(definition, "losslib", "own.py").files.items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text)
    for home in homes:
        home.__path__.append(str(tmp_path / "src" / home.__name__.replace(".", "/")))
    for name, class_name in (("three_levels", "ThreeLevels"), ("two_levels", "TwoLevels")):
        arrays, tensors = (importlib.import_module(f"{home.__name__}.{name}") for home in homes)
        found[name] = SimpleNamespace(module=getattr(tensors, class_name), function=getattr(tensors, name), **{
            target: getattr(arrays, f"{class_name}Function")(module._backend) for target, module in targets.items()})
    yield SimpleNamespace(**found)
    for home, paths in zip(homes, before, strict=True):
        home.__path__[:] = paths


def written_out(parameters: dict[str, Any], x: Any, name: str, topics: int, groups: int) -> Any:
    """log p of every class, from the meaning of the definitions: products of torch's own softmaxes."""
    def scores(at: str) -> Any:
        layers = [at] if f"{at}.weight" in parameters else [f"{at}.0", f"{at}.1"]
        out = x
        for layer in layers:
            out = out @ parameters[f"{layer}.weight"].T + parameters.get(f"{layer}.bias", 0)
        return out.log_softmax(1)

    if name == "two_levels":
        return torch.cat([scores("which")[:, [g]] + scores(f"word.{g}") for g in range(groups)], 1)
    root = scores("root")
    parts = [root[:, [t]] + scores(f"topic.{t}")[:, [g]] + scores(f"group.{t}.{g}") for t in range(topics) for g in range(groups)]
    return torch.cat([*parts, root[:, [topics]] + scores("others")], 1)


@pytest.mark.parametrize(("name", "sizes", "count"), [
    ("three_levels", (6, 2, 3, 4, 5, True), 29), ("three_levels", (4, 1, 2, 1, 1, False), 3),
    ("two_levels", (5, 4, 3, True), 12), ("two_levels", (5, 1, 3, False), 3)])
def test_definitions_of_ones_own(own: SimpleNamespace, name: str, sizes: tuple[Any, ...], count: int) -> None:
    made = getattr(own, name)
    torch.manual_seed(0)
    module = made.module(*sizes, dtype=torch.float64)
    topics, groups = (sizes[1], sizes[2]) if name == "three_levels" else (1, sizes[1])
    x, y = torch.randn(30, sizes[0], dtype=torch.float64, requires_grad=True), torch.arange(30) % count
    parameters = dict(module.named_parameters())
    wanted = written_out(parameters, x, name, topics, groups)
    assert wanted.shape == (30, count)
    torch.testing.assert_close(wanted.exp().sum(1), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(module.log_prob(x), wanted)
    assert torch.equal(module.predict(x), wanted.argmax(1))
    out, loss = module(x, y)
    torch.testing.assert_close(out, wanted.gather(1, y[:, None])[:, 0])
    grads = torch.autograd.grad(loss, [x, *parameters.values()], allow_unused=True)
    expected = torch.autograd.grad(torch.nn.functional.nll_loss(wanted, y), [x, *parameters.values()])
    assert torch.equal(made.function(x, y, parameters, *sizes).output, out)
    arrays = {key: p.detach().numpy() for key, p in parameters.items()}
    for target in ("numpy", "c"):
        function = getattr(made, target)
        (values, mean), by = function.value_and_grad(x.detach().numpy(), y.numpy(), arrays, *sizes)
        np.testing.assert_allclose(values, out.detach(), rtol=1e-12)
        np.testing.assert_allclose(mean, loss.item(), rtol=1e-12)
        for key, grad, exact in zip(["input", *arrays], grads, expected, strict=True):
            torch.testing.assert_close(grad, exact)
            np.testing.assert_allclose(by[key], exact, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(function.log_prob(x.detach().numpy(), arrays, *sizes), wanted.detach(), rtol=1e-12)
        assert (function.predict(x.detach().numpy(), arrays, *sizes) == wanted.argmax(1).numpy()).all()


HEAD = """from losscomp.language import *
n, m = size("n"), size("m")
i = axis("part", extent=m).index()
_of = lambda name: getattr(base(f"classification/{name}.py"), name)
cross = _of("cross_entropy")
_plain = Choice(layers("a", n), classes(0, m))
"""


@pytest.mark.parametrize(("text", "message"), [
    ("mine = Hierarchy(_plain, loss=_of('focal_loss'))", "focal_loss is not -log of"),
    ("mine = Hierarchy(_plain, loss=_of('nll_loss'))", "nll_loss is not -log of"),
    ("mine = Hierarchy(_plain, loss=_of('multi_margin_loss'))", "multi_margin_loss is not -log of"),
    ("mine = Hierarchy(Choice(layers('a', n), classes(0, i + m)), loss=cross)", "stands in no each(...) over part"),
    ("mine = Hierarchy(Choice(layers('a'), classes(0, m * n)), loss=cross)", "says no width"),
    ("mine = Hierarchy(Choice(layers('a', n * m)), loss=cross)", "has no outcome"),
    ("mine = Hierarchy(Choice(layers('b', n), each(axis('k').index(), _plain)), loss=cross)", "whose extent"),
    ("mine = Hierarchy(_plain, loss=cross, attributes={'parameters': n})", "'parameters' is no name"),
    ("mine = Hierarchy(Choice(layers('n', n), classes(0, m)), loss=cross)", "'n' is the name of two things"),
    ("mine = Hierarchy(Choice(layers('a', n), _plain), loss=cross)", "'a' is the name of two things"),
    ("mine = Hierarchy(Choice(layers('a.b', n), classes(0, m)), loss=cross)", "'a.b' is no name"),
    ("mine = Hierarchy(Choice(layers('a', n), classes(0, n)), loss=cross)", "'m' is declared and used by no loss"),
    ("mine = Hierarchy(_plain, loss=cross, forward='input')", "does not name two tensors"),
])
def test_mistakes_in_definitions(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + text + "\n")
    with pytest.raises(LosscompError, match=re.escape(message)) as caught:
        compose.hierarchy_values(load_file(path)[0])                     # type: ignore[arg-type]
    assert caught.value.repair


def test_outcomes_that_leave_out_classes(own: SimpleNamespace) -> None:
    choices = importlib.import_module("losslib.choices")
    layers = choices.Layers("here", (3,))
    for outcomes in ([range(3), range(4, 6)], [range(3), range(3, 3)], [range(3), range(2, 5)]):
        with pytest.raises(ValueError, match=r"the outcomes of here are the classes .*: they must follow each other"):
            choices.Choice(layers, *outcomes)


def test_what_it_is_composed_of_must_be_there() -> None:
    definition, = load_file(builtin_definitions() / "classification" / f"{NAME}.py")
    with pytest.raises(LosscompError, match=f"{NAME} is composed of cross_entropy, which is not among"):
        emit.emit_library([emit.emit_loss(definition, "alone", "test")], "alone", "0")


def test_commands_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    folder = builtin_definitions() / "classification"
    row = next(r for r in show.rows(folder / f"{NAME}.py"))
    assert (row.kind, row.targets, row.peer) == ("choices by cross_entropy", "numpy c torch", "torch.nn.AdaptiveLogSoftmaxWithLoss")
    assert row.options == "in_features n_classes cutoffs div_value head_bias"
    assert cli.main(["show", NAME, "--target", "torch", "--defs", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "class AdaptiveLogSoftmaxWithLoss(HierarchyModule)" in shown and "losscomp show cross_entropy --stage smooth" in shown
    for command in (["verify"], ["bench"], ["suggest"], ["compare"]):
        assert cli.main([*command, NAME, "--defs", str(folder)]) == 1
        assert f"{NAME} has no formula of its own: it is composed of cross_entropy" in capsys.readouterr().err
    with pytest.raises(LosscompError, match="there is no loss 'adaptive_log_softmax'"):
        catalogue.pick(["adaptive_log_softmax"], folder)
    every, formulas = load_all(folder), catalogue.load(folder)
    assert isinstance(every[NAME], Hierarchy) and every.keys() - formulas.keys() == {NAME}
    assert catalogue.pick([], folder).keys() == formulas.keys()

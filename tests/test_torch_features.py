"""What PyTorch's machinery asks of a loss: derivatives of every kind and order, transforms, compilation, types, layouts, modules.

Expected values are PyTorch's own, by plain autograd in float64, for the inputs by which PyTorch differentiates; for the rest
they are numerical derivatives (gradcheck).
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwd
from peercases import (
    CALLS,
    DEFINITIONS,
    LIKE_TORCH,
    PLAIN,
    Call,
    broadcasts,
    calls_of,
    cotangent,
    formula_has_axes,
    gradients,
    ids,
    modules,
    peer_of,
    problem,
    theirs,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PACKAGE = "losslib"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

WITH_PEER = tuple(c for c in CALLS if peer_of(c.loss))
SMOOTH = tuple(c for c in WITH_PEER if theirs(c.id))
PLAIN_SMOOTH = tuple(c for c in SMOOTH if c.plain)
each_call = pytest.mark.parametrize("call", CALLS, ids=ids(CALLS))
each_with_peer = pytest.mark.parametrize("call", WITH_PEER, ids=ids(WITH_PEER))
each_smooth = pytest.mark.parametrize("call", SMOOTH, ids=ids(SMOOTH))
each_plain = pytest.mark.parametrize("call", PLAIN_SMOOTH, ids=ids(PLAIN_SMOOTH))
REDUCED = ("mean", "none")
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def pair(T: Any, call: Call, names: Sequence[str], reduction: str = "mean") -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Our loss and PyTorch's as functions of the named tensors."""
    peer = peer_of(call.loss)
    assert peer is not None
    return call.bound(getattr(T, call.loss), names, reduction), call.bound(peer, names, reduction)


def same(found: Any, expected: Any, **tolerance: float) -> None:
    assert not (wrong := problem(found, expected, **(tolerance or EXACT))), wrong


def plain_gradients(function: Callable[..., Any], leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients by plain autograd along a fixed cotangent."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    value = function(*leaves)
    return value.detach(), gradients(value, leaves, cotangent(value).to(value.dtype))


def plain_hessian_product(function: Callable[..., Any], leaves: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian times a direction, by reverse over reverse."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    first = gradients(function(*leaves), leaves, graph=True)
    slope = sum((g * v).sum() for g, v in zip(first, along, strict=True))
    return gradients(slope, leaves) if isinstance(slope, Tensor) else [torch.zeros_like(x) for x in leaves]


# Derivatives

@pytest.mark.parametrize("reduction", REDUCED)
@each_call
def test_gradcheck(call: Call, reduction: str, T: Any) -> None:
    """Every real tensor, weights and fixed targets too, against numerical derivatives; and a vmapped backward."""
    function = call.bound(getattr(T, call.loss), call.smooth, reduction)
    assert torch.autograd.gradcheck(function, call.leaves(call.smooth), check_batched_grad=reduction == "mean")


@each_call
def test_gradgradcheck(call: Call, T: Any) -> None:
    function = call.bound(getattr(T, call.loss), call.smooth, "mean")
    assert torch.autograd.gradgradcheck(function, call.leaves(call.smooth), atol=1e-4)


@each_smooth
def test_second_derivatives_of_each_element(call: Call, T: Any) -> None:
    """Without a reduction, against PyTorch."""
    names = theirs(call.id)
    ours, peer = pair(T, call, names, "none")
    along = call.directions(names)
    total = [lambda *leaves, f=f: (f(*leaves) * cotangent(f(*leaves))).sum() for f in (ours, peer)]
    found, expected = (plain_hessian_product(f, call.leaves(names), along) for f in total)
    same(found, expected)


@each_call
def test_forward_over_reverse_check(call: Call, T: Any) -> None:
    function = call.bound(getattr(T, call.loss), call.smooth, "mean")
    assert torch.autograd.gradgradcheck(function, call.leaves(call.smooth), atol=1e-4, check_fwd_over_rev=True,
                                        check_rev_over_rev=False, check_undefined_grad=False)


@pytest.mark.parametrize("reduction", REDUCED)
@each_call
def test_forward_mode(call: Call, reduction: str, T: Any) -> None:
    """Dual numbers: the tangent is the gradient along the direction; it may be absent only where every gradient is 0."""
    function = call.bound(getattr(T, call.loss), call.smooth, reduction)
    along = call.directions(call.smooth)
    with fwd.dual_level():
        duals = [fwd.make_dual(x, v) for x, v in zip(call.leaves(call.smooth, grad=False), along, strict=True)]
        tangent = fwd.unpack_dual(function(*duals)).tangent
    value, slopes = plain_gradients(function, call.leaves(call.smooth))
    if tangent is None:
        assert not any(bool(g.any()) for g in slopes), "the tangent was dropped"
        return
    expected = sum((g * v).sum() for g, v in zip(slopes, along, strict=True))
    same((tangent * cotangent(value)).sum(), expected)
    if any(bool(g.any()) for g in slopes):
        assert tangent.any(), "the tangent is silently zero"


@pytest.mark.parametrize("call", [c for c in PLAIN if len(c.smooth) > 1], ids=lambda c: c.id)
def test_forward_mode_by_one_input(call: Call, T: Any) -> None:
    """A tangent of one input alone."""
    for name in call.smooth:
        function = call.bound(getattr(T, call.loss), [name])
        x, = call.leaves([name], grad=False)
        v, = call.directions([name])
        with fwd.dual_level():
            tangent = fwd.unpack_dual(function(fwd.make_dual(x, v))).tangent
        assert tangent is not None, name
        _, (slope,) = plain_gradients(function, [x])
        same(tangent * cotangent(tangent), (slope * v).sum())


# Transforms

@each_smooth
def test_func_grad(call: Call, T: Any) -> None:
    names = theirs(call.id)
    ours, peer = pair(T, call, names)
    leaves = call.leaves(names, grad=False)
    _, expected = plain_gradients(lambda *xs: peer(*xs), leaves)
    scale = cotangent(torch.zeros((), dtype=torch.float64))
    found, value = torch.func.grad_and_value(ours, argnums=tuple(range(len(names))))(*leaves)
    same(value, peer(*leaves))
    same([g * scale for g in found], expected)


@each_smooth
def test_func_jvp_and_vjp(call: Call, T: Any) -> None:
    names = theirs(call.id)
    ours, peer = pair(T, call, names, "none")
    leaves, along = call.leaves(names, grad=False), call.directions(names)
    value, slopes = plain_gradients(peer, leaves)
    upstream = cotangent(value)
    found, tangent = torch.func.jvp(ours, tuple(leaves), along)
    same(found, value)
    same((tangent * upstream).sum(), sum((g * v).sum() for g, v in zip(slopes, along, strict=True)))
    again, pull = torch.func.vjp(ours, *leaves)
    same(again, value)
    same(list(pull(upstream)), slopes)


@each_plain
def test_vmap(call: Call, T: Any) -> None:
    """Each sample a call of its own; and their gradients."""
    names = theirs(call.id)
    function, peer = getattr(T, call.loss), peer_of(call.loss)
    assert peer is not None
    mapped = [k for k in call.tensors if k not in call.shared]
    given = [call.tensors[k] for k in mapped]

    def one(f: Callable[..., Any]) -> Callable[..., Any]:
        shared = {k: call.tensors[k] for k in call.shared if k in call.tensors}
        return lambda *xs: f(**dict(zip(mapped, xs, strict=True)), **shared, **call.params, reduction="sum")

    rows = list(zip(*given, strict=True))
    same(torch.func.vmap(one(function))(*given), torch.stack([one(peer)(*row) for row in rows]))
    places = tuple(mapped.index(k) for k in names)
    found = torch.func.vmap(torch.func.grad(one(function), argnums=places))(*given)
    for row in range(len(rows)):
        leaves = [x.clone().requires_grad_(place in places) for place, x in enumerate(rows[row])]
        expected = gradients(one(peer)(*leaves), [leaves[p] for p in places])
        same([g[row] for g in found], expected)


@each_plain
def test_vmap_over_one_input(call: Call, T: Any) -> None:
    """Only one tensor has the new dimension, and it is not the first."""
    name = theirs(call.id)[0]
    ours, peer = pair(T, call, [name], "none")
    stacked = torch.stack([call.tensors[name], call.tensors[name] * 0.9], -1)
    same(torch.func.vmap(ours, in_dims=-1)(stacked), torch.stack([peer(stacked[..., 0]), peer(stacked[..., 1])]))


HESSIANS: dict[str, Callable[[Any], Any]] = {
    "hessian": torch.func.hessian,
    "forward-over-reverse": lambda f: torch.func.jacfwd(torch.func.jacrev(f)),
    "reverse-over-forward": lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    "reverse-over-reverse": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "forward-over-forward": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    "vmapped": lambda f: lambda x: torch.func.vmap(torch.func.jacfwd(torch.func.grad(f)))(x[None])[0],
}


@pytest.mark.parametrize("way", HESSIANS)
@each_plain
def test_hessian(call: Call, way: str, T: Any) -> None:
    name = theirs(call.id)[0]
    ours, peer = pair(T, call, [name])
    x, = call.leaves([name], grad=False)
    rows = [plain_hessian_product(peer, [x], [v.reshape(x.shape)])[0].flatten() for v in torch.eye(x.numel(), dtype=x.dtype)]
    same(HESSIANS[way](ours)(x), torch.stack(rows).reshape(*x.shape, *x.shape))


@each_smooth
def test_jvp_of_grad(call: Call, T: Any) -> None:
    """A Hessian-vector product by all inputs at once, forward over reverse."""
    names = theirs(call.id)
    ours, peer = pair(T, call, names)
    leaves, along = call.leaves(names, grad=False), call.directions(names)
    grad = torch.func.grad(ours, argnums=tuple(range(len(names))))
    _, found = torch.func.jvp(grad, tuple(leaves), along)
    same(list(found), plain_hessian_product(peer, leaves, along))


@each_plain
def test_third_order(call: Call, T: Any) -> None:
    """The second derivative along a direction, differentiated once more."""
    name = theirs(call.id)[0]
    ours, peer = pair(T, call, [name])

    def third(f: Callable[..., Any]) -> Tensor:
        x, = call.leaves([name])
        found = f(x)
        for _ in range(3):
            if not found.requires_grad:
                return torch.zeros_like(x)
            found = (gradients(found, [x], graph=True)[0] * cotangent(x, 3)).sum()
        return found.detach()

    same(torch.as_tensor(third(ours)).sum(), torch.as_tensor(third(peer)).sum(), rtol=1e-7, atol=1e-9)


# Compilation

def repeated(call: Call, names: Sequence[str], times: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The call with its samples repeated: another batch size. The named tensors, and the rest."""
    longer = {k: v if k in call.shared else v.repeat(times, *[1] * (v.ndim - 1)) for k, v in call.tensors.items()}
    return [longer[k].float().requires_grad_() for k in names], {
        k: v.float() if v.is_floating_point() else v for k, v in longer.items() if k not in names}


def compiled_agrees(call: Call, T: Any, **how: Any) -> None:
    """Value and gradients of the compiled loss, inside other work, at three batch sizes."""
    torch._dynamo.reset()
    names = theirs(call.id)
    peer = peer_of(call.loss)

    def work(f: Callable[..., Any], leaves: list[Tensor], rest: dict[str, Tensor]) -> Tensor:
        return 3 * f(**{k: v * 1 for k, v in zip(names, leaves, strict=True)}, **rest, **call.params)

    step = torch.compile(lambda leaves, rest: work(getattr(T, call.loss), leaves, rest), fullgraph=True, dynamic=True, **how)
    for times in (1, 2, 3):
        leaves, rest = repeated(call, names, times)
        value = step(leaves, rest)
        found = torch.autograd.grad(value, leaves)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        expected = work(peer, wide, {k: v.double() if v.is_floating_point() else v for k, v in rest.items()})
        same(value.double(), expected, rtol=2e-6, atol=2e-6)
        same([g.double() for g in found], gradients(expected, wide), rtol=1e-5, atol=1e-6)


@each_plain
def test_compile(call: Call, T: Any) -> None:
    """Without graph breaks, for any batch size."""
    compiled_agrees(call, T, backend="aot_eager")


@each_plain
def test_compile_of_grad(call: Call, T: Any) -> None:
    """A transform inside the compiled function."""
    torch._dynamo.reset()
    name = theirs(call.id)[0]
    ours, peer = pair(T, call, [name])
    x, = call.leaves([name], grad=False)
    step = torch.compile(lambda v: torch.func.grad(ours)(v), fullgraph=True, backend="aot_eager")
    _, (expected,) = plain_gradients(lambda v: peer(v) / cotangent(torch.zeros((), dtype=torch.float64)), [x])
    same(step(x), expected)


def shown(calls: Sequence[Call]) -> list[Any]:
    """The first call of a loss of elements and the first of one with an axis; the rest are slow."""
    first = {axes: next((c for c in calls if formula_has_axes(c.loss) is axes), None) for axes in (False, True)}
    return [pytest.param(c, id=c.id, marks=() if c in first.values() else pytest.mark.slow) for c in calls]


@pytest.mark.parametrize("call", shown(PLAIN_SMOOTH))
def test_compile_to_code(call: Call, T: Any) -> None:
    """With PyTorch's own code generator."""
    compiled_agrees(call, T)


class AsModule(torch.nn.Module):
    """A loss as a module of the tensors of a call, to be exported."""

    def __init__(self, function: Callable[..., Any], call: Call) -> None:
        super().__init__()
        self.function, self.call = function, call

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(**dict(zip(self.call.tensors, tensors, strict=True)), **self.call.params)


def exported(T: Any, call: Call, dims: tuple[Any, ...] | None = None) -> Any:
    """The exported program of a call; the sizes that `dims` names are left open."""
    module = AsModule(getattr(T, call.loss), call)
    return torch.export.export(module, tuple(call.tensors.values()), dynamic_shapes={"tensors": dims} if dims else None)


@each_plain
def test_export(call: Call, T: Any) -> None:
    """As it is, decomposed, and with the number of samples left open."""
    peer, given = peer_of(call.loss), tuple(call.tensors.values())
    program = exported(T, call)
    same(program.module()(*given), call.value(peer))
    same(program.run_decompositions().module()(*given), call.value(peer))
    batch = torch.export.Dim("batch", min=2)
    program = exported(T, call, tuple(None if k in call.shared else {0: batch} for k in call.tensors))
    longer = {k: v if k in call.shared else torch.cat([v, v * 1]) for k, v in call.tensors.items()}
    same(program.module()(*longer.values()), peer(**longer, **call.params))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@each_with_peer
def test_meta(call: Call, reduction: str, T: Any) -> None:
    """Tensors without storage: the shape and the type of the result, and of its gradients."""
    function = getattr(T, call.loss)
    real = call.value(function, reduction)
    given = {k: v.to("meta").requires_grad_(k in call.smooth) for k, v in call.tensors.items()}
    leaves = [given[k] for k in call.smooth]
    value = function(**given, **call.params, reduction=reduction)
    assert (value.device.type, value.shape, value.dtype) == ("meta", real.shape, real.dtype)
    for x, g in zip(leaves, gradients(value, leaves, torch.empty_like(value)), strict=True):
        assert (g.device.type, g.shape, g.dtype) == ("meta", x.shape, x.dtype)


@each_with_peer
def test_fake(call: Call, T: Any) -> None:
    """Fake tensors, with backward, as tracers use them."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    names = theirs(call.id)
    function = getattr(T, call.loss)
    real = {k: v.clone().requires_grad_(k in names) for k, v in call.tensors.items()}
    with FakeTensorMode() as mode:
        given = {k: mode.from_tensor(v) for k, v in real.items()}
        value = function(**given, **call.params)
        assert isinstance(value, FakeTensor)
        assert (value.shape, value.dtype) == (torch.Size([]), torch.float64)
        for k, g in zip(names, gradients(value, [given[k] for k in names]), strict=True):
            assert (g.shape, g.dtype) == (given[k].shape, given[k].dtype)


@each_plain
def test_make_fx(call: Call, T: Any) -> None:
    """Value and gradient traced together, then run on other numbers."""
    from torch.fx.experimental.proxy_tensor import make_fx

    name = theirs(call.id)[0]
    ours, peer = pair(T, call, [name])

    def joint(f: Callable[..., Any], x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = f(x)
        return value.detach(), torch.autograd.grad(value, x)[0]

    x, = call.leaves([name], grad=False)
    traced = make_fx(lambda v: joint(ours, v), tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    same(traced(x * 0.9), joint(peer, x * 0.9))


# Registered operators

Op = tuple[Any, tuple[Any, ...], dict[str, Any]]


def is_registered(op: Any) -> bool:
    return isinstance(op, torch._ops.OpOverload) and op.namespace == PACKAGE


def operators_of(T: Any, call: Call) -> dict[str, Op]:
    """Calls of the library's operators that a loss makes: in an exported program, and below autograd, forward and backward."""
    from torch.fx.experimental.proxy_tensor import make_fx

    found: dict[str, Op] = {}

    class Watch(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if is_registered(target):
                found.setdefault(str(target), (target, args, kwargs))
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        Watch(exported(T, call).module()).run(*call.tensors.values())
    name = theirs(call.id)[0]
    ours = call.bound(getattr(T, call.loss), [name])

    def joint(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(ours(x), x)[0]

    x, = call.leaves([name], grad=False)
    traced = make_fx(joint, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    with torch.no_grad():
        Watch(traced).run(x)
    return found


def as_leaves(value: Any) -> Any:
    return value.detach().clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


@each_plain
def test_operators(call: Call, T: Any) -> None:
    """Each loss is an operator of the package, torch.ops.losslib.<loss>, and passes PyTorch's checks; so do those it is made of."""
    found = operators_of(T, call)
    public = f"{PACKAGE}.{call.loss}.default"
    assert public in found, f"{public} is not in the exported program: {sorted(found)}"
    for name, (op, args, kwargs) in found.items():
        if name == public:
            args, kwargs = torch.utils._pytree.tree_map(as_leaves, (args, kwargs))
        torch.library.opcheck(op, args, kwargs)


# Modes and memory

@each_smooth
def test_checkpoint(call: Call, T: Any) -> None:
    names = theirs(call.id)
    ours, peer = pair(T, call, names)
    leaves = call.leaves(names)
    expected, slopes = plain_gradients(peer, leaves)
    for reentrant in (False, True):
        value = checkpoint(lambda *xs: ours(*[x * 1 for x in xs]), *leaves, use_reentrant=reentrant)
        same(value, expected)
        value.backward(cotangent(expected))
        same([x.grad for x in leaves], slopes)
        for x in leaves:
            x.grad = None


@each_with_peer
def test_without_gradients(call: Call, T: Any) -> None:
    """Under no_grad and in inference mode; with tensors made there too."""
    function, expected = getattr(T, call.loss), call.value(peer_of(call.loss))
    given = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in call.tensors.items()}
    with torch.no_grad():
        value = function(**given, **call.params)
    assert not value.requires_grad
    same(value, expected)
    with torch.inference_mode():
        value = function(**given, **call.params)
        assert value.is_inference()
        same(function(**{k: v.clone() for k, v in given.items()}, **call.params), expected)
    same(value, expected)


@each_smooth
def test_gradient_twice(call: Call, T: Any) -> None:
    """A retained graph gives the same again, a freed one is an error; backward adds up."""
    names = theirs(call.id)
    leaves = call.leaves(names)
    value = call.bound(getattr(T, call.loss), names)(*leaves)
    if not value.requires_grad:
        return
    first = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    value.backward()
    for x, g in zip(leaves, first, strict=True):
        same(x.grad, g)
    with pytest.raises(RuntimeError, match=r"second time|already been freed"):
        value.backward()


@each_smooth
def test_no_gradient_where_none_is_asked(call: Call, T: Any) -> None:
    """Only the tensors that ask get a gradient, whichever they are."""
    names = call.smooth
    function = getattr(T, call.loss)
    for wanted in itertools.product((False, True), repeat=min(len(names), 2)):
        chosen = dict(zip(names, wanted, strict=False))
        given = {k: v.clone().requires_grad_(chosen.get(k, False)) for k, v in call.tensors.items()}
        value = function(**given, **call.params)
        assert value.requires_grad is any(wanted)
        if any(wanted):
            value.backward()
        assert {k for k, v in given.items() if v.grad is not None} == {k for k, w in chosen.items() if w}


@each_smooth
def test_changed_input_is_noticed(call: Call, T: Any) -> None:
    """Backward after an input was changed in place is an error or the old gradient, never the wrong one."""
    names = theirs(call.id)
    x, *_ = call.leaves(names)
    function = call.bound(getattr(T, call.loss), names[:1])
    _, (expected,) = plain_gradients(function, [x])
    work = x * 1
    value = function(work)
    with torch.no_grad():
        work.mul_(0.5)
    try:
        found, = torch.autograd.grad(value, x, cotangent(value))
    except RuntimeError:
        return
    same(found, expected)


LABELLED = tuple(c for c in WITH_PEER if any(v.is_floating_point() and k not in c.smooth for k, v in c.tensors.items()))


@pytest.mark.parametrize("call", LABELLED, ids=ids(LABELLED))
def test_labels_that_ask_for_a_gradient(call: Call, T: Any) -> None:
    """The formula only compares them with numbers: nothing, or 0."""
    given = {k: v.clone().requires_grad_() for k, v in call.tensors.items()}
    getattr(T, call.loss)(**given, **call.params).backward()
    for k, v in given.items():
        if k not in call.smooth:
            assert v.grad is None or not v.grad.any(), k


@each_smooth
def test_results_are_their_own(call: Call, T: Any) -> None:
    """A later call does not change an earlier result, and a result may be changed in place before backward."""
    names = theirs(call.id)
    ours, peer = pair(T, call, names, "none")
    leaves = call.leaves(names)
    expected, slopes = plain_gradients(peer, leaves)
    first = ours(*leaves)
    kept = gradients(first, leaves, cotangent(expected), graph=True)
    other = ours(*[x.detach() * 0.9 for x in leaves])
    assert other.data_ptr() != first.data_ptr()
    same(first.detach(), expected)
    first.mul_(2)
    same(gradients(first, leaves, cotangent(expected)), [2 * g for g in slopes])
    same([g.detach() for g in kept], slopes)


def test_many_threads(T: Any) -> None:
    """Calls from several threads at once, of several sizes, forward and backward."""
    def run(task: tuple[Call, int]) -> str:
        call, times = task
        names = theirs(call.id)
        longer = {k: v if k in call.shared else v.repeat(times, *[1] * (v.ndim - 1)) for k, v in call.tensors.items()}
        results = []
        for f in (getattr(T, call.loss), peer_of(call.loss)):
            given = {k: v.clone().requires_grad_(k in names) for k, v in longer.items()}
            value = f(**given, **call.params)
            results.append([value.detach(), *gradients(value, [given[k] for k in names])])
        return problem(*results, **EXACT)

    tasks = [(call, times) for times in (1, 2, 3, 1, 2, 3) for call in PLAIN_SMOOTH]
    with ThreadPoolExecutor(4) as pool:
        assert [found for found in pool.map(run, tasks) if found] == []


# Types

HALVES = (torch.float16, torch.bfloat16)
short = {torch.float16: "f16", torch.bfloat16: "bf16"}


@pytest.mark.parametrize("dtype", HALVES, ids=short.values())
@each_plain
def test_autocast(call: Call, dtype: torch.dtype, T: Any) -> None:
    """Half-precision tensors under autocast give float32 where PyTorch gives float32, computed as from the widened tensors."""
    names = theirs(call.id)
    ours, peer = pair(T, call.to(dtype), names)
    _wide, wide_peer = pair(T, call.to(dtype).to(torch.float64), names)
    leaves = call.to(dtype).leaves(names)
    with torch.autocast("cpu", dtype):
        value = ours(*leaves)
        expected = peer(*leaves).dtype
    assert value.dtype in (expected, torch.float32)
    exact = wide_peer(*[x.detach().double() for x in leaves])
    same(value.double(), exact, rtol=torch.finfo(value.dtype).eps, atol=1e-6)
    value.backward()
    for x, slope in zip(leaves, plain_gradients(wide_peer, [x.double() for x in leaves])[1], strict=True):
        assert x.grad is not None and x.grad.dtype is dtype
        scale = cotangent(torch.zeros((), dtype=torch.float64))
        same(x.grad.double(), slope / scale, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=short.values())
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@each_with_peer
def test_half(call: Call, reduction: str, dtype: torch.dtype, T: Any) -> None:
    """Half-precision tensors give PyTorch's type, one rounding away from float32 arithmetic; gradients two."""
    names = theirs(call.id)
    half = call.to(dtype)
    ours, peer = pair(T, half, names, reduction)
    _, wide = pair(T, half.to(torch.float64), names, reduction)
    leaves = half.leaves(names)
    value = ours(*leaves)
    assert value.dtype is peer(*half.leaves(names, grad=False)).dtype
    exact, _slopes = plain_gradients(wide, [x.double() for x in leaves])
    unit = torch.finfo(dtype).eps / 2
    same(value.double(), exact, rtol=1.01 * unit, atol=1e-6)
    found = gradients(value, leaves, cotangent(exact).to(dtype))
    upstream = cotangent(exact).to(dtype).double()
    again = [x.detach().double().requires_grad_() for x in leaves]
    for g, slope in zip(found, gradients(wide(*again), again, upstream), strict=True):
        assert g.dtype is dtype
        same(g.double(), slope, rtol=2.02 * unit, atol=1e-6)


@each_plain
def test_mixed_types(call: Call, T: Any) -> None:
    """float32 beside float64, where PyTorch accepts it: float64 or PyTorch's own choice; gradients have the types of their tensors."""
    peer, function = peer_of(call.loss), getattr(T, call.loss)
    for narrow in call.smooth:
        mixed = {k: v.float() if k == narrow else v for k, v in call.tensors.items()}
        try:
            expected = peer(**mixed, **call.params)
        except RuntimeError:
            continue
        given = {k: v.clone().requires_grad_(k in call.smooth) for k, v in mixed.items()}
        value = function(**given, **call.params)
        assert value.dtype in (torch.float64, expected.dtype)
        same(value.double(), expected.double(), rtol=1e-6, atol=1e-7)
        value.backward()
        for k in call.smooth:
            slope = given[k].grad
            assert slope is not None and slope.dtype is given[k].dtype


# Layouts

def every_second(x: Tensor) -> Tensor:
    wide = x.new_full([2 * n for n in x.shape], 77)
    view = wide[tuple(slice(None, None, 2) for _ in x.shape)]
    view.copy_(x)
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "strided": every_second,
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "negated": lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_with_peer
def test_layouts(call: Call, layout: str, T: Any) -> None:
    names = theirs(call.id)
    peer, function = peer_of(call.loss), getattr(T, call.loss)

    def run(f: Callable[..., Any], lay_out: Callable[[Tensor], Tensor]) -> list[Tensor]:
        given = {k: lay_out(v).detach().requires_grad_(k in names) for k, v in call.tensors.items()}
        value = f(**given, **call.params, reduction="none")
        return [value.detach(), *gradients(value, [given[k] for k in names], lay_out(cotangent(value)))]

    same(run(function, LAYOUTS[layout]), run(peer, lambda x: x.clone()))


@each_with_peer
def test_expanded(call: Call, T: Any) -> None:
    """Samples that are one and the same memory, and a cotangent that is."""
    names = theirs(call.id)
    peer, function = peer_of(call.loss), getattr(T, call.loss)

    def run(f: Callable[..., Any]) -> list[Tensor]:
        leaves = {k: (v if k in call.shared else v[:1]).clone().requires_grad_(k in names) for k, v in call.tensors.items()}
        given = {k: v if k in call.shared else v.expand(5, *v.shape[1:]) for k, v in leaves.items()}
        value = f(**given, **call.params, reduction="none")
        upstream = torch.tensor(0.7, dtype=torch.float64).expand(value.shape)
        return [value.detach(), *gradients(value, [leaves[k] for k in names], upstream)]

    same(run(function), run(peer))


SMALLER: dict[str, Callable[[Tensor], Tensor]] = {
    "one-row": lambda v: v[:1],
    "one-column": lambda v: v[:, :1],
    "a-row": lambda v: v[0],
    "a-number": lambda v: v[0, 0],
    "fewer-rows": lambda v: v[:2],
    "fewer-columns": lambda v: v[:, :3],
    "more-dimensions": lambda v: v[None],
}


@pytest.mark.parametrize("cut", SMALLER)
@pytest.mark.parametrize("call", [c for c in WITH_PEER if c.plain or c.id.endswith("weighted")], ids=lambda c: c.id)
def test_shapes_that_differ(call: Call, cut: str, T: Any) -> None:
    """Each tensor in turn has another shape: the result is PyTorch's, or that of expanded tensors; or an error.

    Where every tensor of the loss is declared to broadcast, what PyTorch takes is taken.
    """
    peer = peer_of(call.loss)

    def run(f: Callable[..., Any], given: dict[str, Tensor], expand: bool = False) -> list[Tensor] | None:
        leaves = {k: v.clone().requires_grad_(k in theirs(call.id)) for k, v in given.items()}
        try:
            shaped = expanded(call, leaves) if expand else leaves
            value = f(**shaped, **call.params, reduction="none")
        except (ValueError, RuntimeError, IndexError):
            return None
        return [value.detach(), *gradients(value, [leaves[k] for k in theirs(call.id)], cotangent(value))]

    if cut == "more-dimensions" and formula_has_axes(call.loss):
        return                                  # where the axis then stands is another question for each loss
    for name, v in call.tensors.items():
        if v.ndim == 2:
            given = {**call.tensors, name: SMALLER[cut](v).contiguous()}
            found, wanted = run(getattr(T, call.loss), given), run(peer, given)
            if found is None:
                assert wanted is None or not broadcasts(call.loss), f"{name}: refused, and PyTorch takes it"
                continue
            allowed = [r for r in (wanted, run(peer, given, expand=True)) if r is not None]
            assert any(not problem(found, r, **EXACT) for r in allowed), name


def expanded(call: Call, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the shapes that they stand for."""
    if formula_has_axes(call.loss):
        return {k: v.expand(call.tensors[k].shape) for k, v in given.items()}
    return dict(zip(given, torch.broadcast_tensors(*given.values()), strict=True))


@each_smooth
def test_nan_is_kept(call: Call, T: Any) -> None:
    """A sample of NaN in any tensor gives NaN for that sample, and for no other."""
    for name in call.smooth:
        if name in call.shared:
            continue
        v = call.tensors[name].clone()
        v[0] = torch.nan
        given = {**call.tensors, name: v}
        value = getattr(T, call.loss)(**given, **call.params, reduction="none")
        assert value[0].isnan().all() and not value[1:].isnan().any(), name
        assert getattr(T, call.loss)(**given, **call.params).isnan(), name


INDEXED = tuple(c for c in WITH_PEER if c.plain and any(not v.is_floating_point() for v in c.tensors.values()))


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
@pytest.mark.parametrize("call", INDEXED, ids=ids(INDEXED))
def test_index_out_of_range(call: Call, wrong: int, T: Any) -> None:
    """Refused with PyTorch's exception, never read."""
    for name, v in call.tensors.items():
        if not v.is_floating_point():
            given = {**call.tensors, name: v.clone().flatten().index_fill(0, torch.tensor([1]), wrong).reshape(v.shape)}
            with pytest.raises(Exception) as refused:
                peer_of(call.loss)(**given, **call.params)
            for reduction in ("none", "mean"):
                with pytest.raises(type(refused.value)):
                    getattr(T, call.loss)(**given, **call.params, reduction=reduction)


def images() -> Iterator[Call]:
    """Calls whose tensors have four dimensions, where the loss takes them."""
    for loss in LIKE_TORCH:
        for batch, tail in (((2, 5, 3, 2), ()), ((2,), (3, 2)), ((2, 5, 3), ())):
            calls = [c for c in calls_of(loss, batch, tail) if c.plain and any(v.ndim == 4 for v in c.tensors.values())]
            good = [c for c in calls if accepted(c)]
            if good:
                yield good[0]
                break


def accepted(call: Call) -> bool:
    try:
        call.value(peer_of(call.loss))
    except (RuntimeError, ValueError):
        return False
    return True


IMAGES = tuple(images())


@pytest.mark.parametrize("call", IMAGES, ids=ids(IMAGES))
def test_channels_last(call: Call, T: Any) -> None:
    peer, function = peer_of(call.loss), getattr(T, call.loss)
    last = call.map(lambda v: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v)
    name = call.smooth[0]
    for reduction in ("none", "mean"):
        x = last.tensors[name].detach().requires_grad_()
        assert x.is_contiguous(memory_format=torch.channels_last)
        value = last.bound(function, [name], reduction)(x)
        y = call.tensors[name].clone().requires_grad_()
        expected = call.bound(peer, [name], reduction)(y)
        same(value.detach(), expected.detach())
        same(gradients(value, [x], cotangent(value)), gradients(expected, [y], cotangent(expected)))


def test_most_losses_take_images() -> None:
    assert len(IMAGES) >= len(LIKE_TORCH) - 2


@each_with_peer
def test_empty(call: Call, T: Any) -> None:
    """No samples: the mean is NaN, the sum 0, as in PyTorch; gradients are empty."""
    names = theirs(call.id)
    peer, function = peer_of(call.loss), getattr(T, call.loss)
    if call.params.get("p") == float("inf"):
        pytest.skip("PyTorch raises: the largest of nothing")
    none = {k: v if k in call.shared else v[:0] for k, v in call.tensors.items()}
    for reduction in ("none", "mean", "sum"):
        given = {k: v.clone().requires_grad_(k in names) for k, v in none.items()}
        value = function(**given, **call.params, reduction=reduction)
        same(value.detach(), peer(**none, **call.params, reduction=reduction))
        if value.requires_grad:
            assert [g.shape for g in gradients(value, [given[k] for k in names], torch.ones_like(value))] == [
                given[k].shape for k in names]


# Arguments

WORDS = ("none", "mean", "sum", "batchmean", "elementwise_mean", "MEAN", "", "foo")


@pytest.mark.parametrize("word", WORDS)
@each_plain
def test_reduction_words(call: Call, word: str, T: Any) -> None:
    """What PyTorch takes is taken, and what it refuses is refused with its exception; elementwise_mean is the mean everywhere."""
    peer, function = peer_of(call.loss), getattr(T, call.loss)
    try:
        expected = call.value(peer, word)
    except Exception as error:
        if word == "elementwise_mean":
            return
        with pytest.raises(type(error)):
            call.value(function, word)
        return
    same(call.value(function, word), expected)


LEGACY = [(a, b) for a in (None, False, True) for b in (None, False, True)]
legacy = pytest.mark.parametrize(("size_average", "reduce"), LEGACY)
OLD = tuple(c for c in PLAIN_SMOOTH if "size_average" in inspect.signature(peer_of(c.loss)).parameters)


def warned(function: Callable[[], Any]) -> tuple[Any, list[type[Warning]]]:
    """The result, and the kinds of the warnings about these arguments."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    return result, [w.category for w in caught if "size_average" in str(w.message)]


@legacy
@pytest.mark.parametrize("call", OLD, ids=ids(OLD))
def test_legacy_arguments(call: Call, size_average: bool | None, reduce: bool | None, T: Any) -> None:
    """The deprecated arguments win over reduction, with a warning."""
    peer, function = peer_of(call.loss), getattr(T, call.loss)
    how: dict[str, Any] = {**call.tensors, **call.params, "size_average": size_average, "reduce": reduce, "reduction": "sum"}
    found, ours = warned(lambda: function(**how))
    expected, others = warned(lambda: peer(**how))
    same(found, expected)
    assert ours == others


@legacy
@pytest.mark.parametrize("loss", modules())
def test_legacy_arguments_of_modules(loss: str, size_average: bool | None, reduce: bool | None, T: Any) -> None:
    name = modules()[loss]
    if "size_average" not in inspect.signature(getattr(torch.nn, name)).parameters:
        pytest.skip("this class never had them")
    made, ours = warned(lambda: getattr(T, name)(size_average=size_average, reduce=reduce, reduction="sum"))
    expected, others = warned(lambda: getattr(torch.nn, name)(size_average=size_average, reduce=reduce, reduction="sum"))
    assert made.reduction == expected.reduction
    assert ours == others


def parameters(signature: inspect.Signature) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in signature.parameters.values()]


def same_signature(ours: Any, theirs: Any) -> None:
    """Names, order and defaults; what may be given by position there may be so here."""
    mine, other = inspect.signature(ours), inspect.signature(theirs)
    assert parameters(mine) == parameters(other)
    for p in other.parameters.values():
        if p.kind is not p.KEYWORD_ONLY:
            assert mine.parameters[p.name].kind is p.kind, p.name


@pytest.mark.parametrize("loss", LIKE_TORCH)
def test_signatures(loss: str, T: Any) -> None:
    same_signature(getattr(T, loss), peer_of(loss))


@pytest.mark.parametrize("loss", modules())
def test_signatures_of_modules(loss: str, T: Any) -> None:
    name = modules()[loss]
    same_signature(getattr(T, name), getattr(torch.nn, name))
    same_signature(getattr(T, name).forward, getattr(torch.nn, name).forward)


def test_positional_arguments(T: Any) -> None:
    """By position, in PyTorch's order, with every optional argument."""
    for call in PLAIN_SMOOTH:
        peer, function = peer_of(call.loss), getattr(T, call.loss)
        args = []
        for p in inspect.signature(peer).parameters.values():
            if p.kind is not p.KEYWORD_ONLY:
                args.append(call.tensors[p.name] if p.name in call.tensors else call.params.get(p.name, p.default))
        same(function(*args), peer(*args))


# Modules

def constructed(call: Call, namespace: Any) -> Any:
    """The class form of a call: what its constructor takes goes there."""
    maker = getattr(namespace, modules()[call.loss])
    names = inspect.signature(getattr(torch.nn, modules()[call.loss])).parameters
    return maker(**{k: v for k, v in {**call.tensors, **call.params}.items() if k in names})


def forwarded(call: Call, module: Any) -> Any:
    """The call of the class form."""
    names = inspect.signature(getattr(torch.nn, modules()[call.loss])).parameters
    return module(*[v for k, v in call.tensors.items() if k not in names])


def fits_module(call: Call) -> bool:
    """Whether every tensor of a call goes to the constructor or to forward, and the class has every parameter."""
    if call.loss not in modules():
        return False
    cls = getattr(torch.nn, modules()[call.loss])
    taken = set(inspect.signature(cls).parameters)
    forward = [p for p in inspect.signature(cls.forward).parameters if p != "self"]
    return set(call.params) <= taken and len([k for k in call.tensors if k not in taken]) == len(forward)


MODULES = tuple(c for c in WITH_PEER if fits_module(c))
each_module = pytest.mark.parametrize("call", MODULES, ids=ids(MODULES))


def test_every_loss_has_a_module_call() -> None:
    assert {c.loss for c in MODULES} == set(modules())


@each_module
def test_module(call: Call, T: Any) -> None:
    """Like PyTorch's class: value, state, attributes, text."""
    made, other = constructed(call, T), constructed(call, torch.nn)
    assert isinstance(made, torch.nn.Module)
    same(forwarded(call, made), forwarded(call, other))
    assert list(made.state_dict()) == list(other.state_dict())
    assert [k for k, _ in made.named_buffers()] == [k for k, _ in other.named_buffers()]
    assert not list(made.parameters())
    for k, v in made.state_dict().items():
        same(v, other.state_dict()[k])
    for k in inspect.signature(type(other)).parameters:
        if hasattr(other, k):
            mine, value = getattr(made, k), getattr(other, k)
            assert (mine is value) or (mine == value if not isinstance(value, Tensor) else torch.equal(mine, value)), k
    assert repr(made) == repr(other)
    assert type(made).__name__ == type(other).__name__


@each_module
def test_module_copies(call: Call, T: Any) -> None:
    """deepcopy, pickle, torch.save, a loaded state."""
    made = constructed(call, T)
    expected = forwarded(call, constructed(call, torch.nn))
    stream = io.BytesIO()
    torch.save(made, stream)
    stream.seek(0)
    for other in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made)), torch.load(stream, weights_only=False)):
        same(forwarded(call, other), expected)
    other = copy.deepcopy(made)
    for buffer in other.buffers():
        buffer.mul_(3)
    assert all(not torch.equal(a, b) for a, b in zip(other.buffers(), made.buffers(), strict=True))
    other.load_state_dict(made.state_dict())
    same(forwarded(call, other), expected)


@each_module
def test_module_moves(call: Call, T: Any) -> None:
    """.to(dtype), .to("meta"), .half().float(): buffers go along."""
    narrow = call.to(torch.float32)
    made, other = constructed(call, T).to(torch.float32), constructed(call, torch.nn).to(torch.float32)
    value = forwarded(narrow, made)
    assert value.dtype is torch.float32
    same(value.double(), forwarded(narrow, other).double(), rtol=2e-6, atol=2e-6)
    assert all(b.dtype is torch.float32 for b in made.buffers())
    assert all(b.device.type == "meta" for b in constructed(call, T).to("meta").buffers())


@each_module
def test_module_in_a_model(call: Call, T: Any) -> None:
    """As a part of another module it is found, compiled and in eval mode the same."""
    model = torch.nn.ModuleDict({"loss": constructed(call, T)})
    assert list(model.state_dict()) == [f"loss.{k}" for k in constructed(call, torch.nn).state_dict()]
    same(forwarded(call, model.eval()["loss"]), forwarded(call, constructed(call, torch.nn)))


@pytest.mark.parametrize("loss", modules())
def test_bad_reduction_of_a_module(loss: str, T: Any) -> None:
    """Noticed by the call, not by the constructor, as in PyTorch."""
    name = modules()[loss]
    made = getattr(T, name)(reduction="foo")
    call = next(c for c in MODULES if c.loss == loss and c.plain)
    with pytest.raises(ValueError):
        forwarded(call, made)


def test_everything_is_there(T: Any) -> None:
    """Every definition has its function; every class of PyTorch its class."""
    assert [n for n in DEFINITIONS if not callable(getattr(T, n, None))] == []
    assert [m for m in modules().values() if not isinstance(getattr(T, m, None), type)] == []


# These tests can fail

def faulty(shape: tuple[int, ...] = ()) -> Any:
    """A target with one loss, registered as libraries often are: its tangents are lost, and its fake may have another shape."""
    call = next(c for c in PLAIN_SMOOTH if broadcasts(c.loss) and theirs(c.id) == ("input", "target"))
    peer = peer_of(call.loss)

    @torch.library.custom_op(f"losscheck::{call.loss}{len(shape)}", mutates_args=())
    def operator(input: Tensor, target: Tensor) -> Tensor:
        return peer(input, target)

    @operator.register_fake
    def fake(input: Tensor, target: Tensor) -> Tensor:
        return input.new_empty(shape)

    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            first, second = torch.autograd.grad(peer(*leaves), leaves)
        return upstream * first, upstream * second

    operator.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))

    def function(input: Tensor, target: Tensor, reduction: str = "mean", **params: Any) -> Tensor:
        return operator(input, target)

    return call, SimpleNamespace(**{call.loss: function}), operator


def test_lost_tangents_are_seen() -> None:
    call, target, _ = faulty()
    x, y = call.leaves(("input", "target"))
    same(getattr(target, call.loss)(x, y), call.value(peer_of(call.loss)))
    with pytest.raises(AssertionError, match="dropped"):
        test_forward_mode(call, "mean", target)
    with pytest.raises((AssertionError, RuntimeError)):
        test_func_grad(call, target)
    with pytest.raises((AssertionError, RuntimeError)):
        test_gradgradcheck(call, target)


def test_a_wrong_fake_is_seen() -> None:
    call, target, operator = faulty((1,))
    with pytest.raises(Exception, match="faketensor"):
        torch.library.opcheck(operator, call.leaves(("input", "target")))
    with pytest.raises(AssertionError):
        test_fake(call, target)


def test_arithmetic_in_half_precision_is_seen() -> None:
    """PyTorch's own elementwise losses round after every step."""
    red = 0
    for call in PLAIN_SMOOTH:
        try:
            test_half(call, "none", torch.bfloat16, torch.nn.functional)
        except AssertionError:
            red += 1
    assert red > len(PLAIN_SMOOTH) // 2

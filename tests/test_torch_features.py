"""What PyTorch's machinery asks of a loss: derivatives of every kind and order, transforms, compilation, modes.

Expected values are PyTorch's own, by plain autograd in float64, for the inputs by which PyTorch differentiates; for the rest
they are numerical derivatives (gradcheck).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwd
from peercases import (
    EXACT,
    PLAIN,
    PLAIN_SMOOTH,
    REDUCED,
    WITH_PEER,
    Call,
    broadcasts,
    cotangent,
    each_call,
    each_natural,
    each_plain,
    each_smooth,
    each_with_peer,
    formula_has_axes,
    gradients,
    ids,
    pair,
    peer_of,
    plain_gradients,
    plain_hessian_product,
    problem,
    same,
    theirs,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PACKAGE = "losslib"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


# Derivatives

@pytest.mark.parametrize("reduction", REDUCED)
@each_natural
def test_gradcheck(call: Call, reduction: str, T: Any) -> None:
    """Every real tensor, weights and fixed targets too, against numerical derivatives; and a vmapped backward."""
    function = call.bound(getattr(T, call.loss), call.smooth, reduction)
    assert torch.autograd.gradcheck(function, call.leaves(call.smooth), check_batched_grad=reduction == "mean")


@each_natural
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


@each_natural
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


# A distance of the caller's

@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", ["cosine", "pairwise", "default"])
def test_a_function_of_the_callers(name: str, reduction: str, swap: bool, T: Any) -> None:
    """Value, gradients and second derivatives through any callable, as function and as class; its parameters learn too."""
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    distance = {"cosine": lambda u, v: scale * (1 - torch.cosine_similarity(u, v)), "pairwise": torch.nn.PairwiseDistance(),
                "default": None}[name]
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]
    moving = [*leaves, scale] if name == "cosine" else leaves
    how: dict[str, Any] = {"distance_function": distance, "margin": 0.7, "swap": swap, "reduction": reduction}
    results = []
    for space, module in ((T, T), (torch.nn.functional, torch.nn)):
        value = space.triplet_margin_with_distance_loss(*leaves, **how)
        same(module.TripletMarginWithDistanceLoss(**how)(*leaves), value)
        first = torch.autograd.grad(value.sum(), moving, create_graph=True)
        results.append([value, *first, *gradients(sum((g * cotangent(g)).sum() for g in first), moving)])
    for found, expected in zip(*results, strict=True):
        same(found, expected)
    with pytest.raises(RuntimeError, match="same number of dimensions"):
        T.triplet_margin_with_distance_loss(leaves[0], leaves[1][0], leaves[2], distance_function=torch.dist)


@pytest.mark.parametrize("target", ["numpy", "c"])
def test_distances_outside_torch(target: str, targets: dict[str, Any]) -> None:
    """Gradients are by what the function computed, and those of the loss of known distances."""
    module = targets[target]
    a, p, n = (cotangent(torch.zeros(4, 5, dtype=torch.float64), seed).numpy() for seed in range(3))
    distance = lambda u, v: abs(u - v).sum(-1)
    value, grads = module.triplet_margin_with_distance_loss.value_and_grad(a, p, n, distance_function=distance, swap=True, reduction="none")
    distances = distance(a, p), distance(a, n), distance(p, n)
    known, (near, far) = module.triplet_distance_loss.value_and_grad(*distances, swap=True, reduction="none")
    expected = [max(0.0, 1 + x - min(y, z)) for x, y, z in zip(*distances, strict=True)]
    assert value.tolist() == known.tolist() and grads._fields == ("to_positive", "to_negative")
    same(torch.tensor(value), torch.tensor(expected, dtype=torch.float64))
    assert grads.to_positive.tolist() == near.tolist() == [float(v > 0) for v in expected] and grads.to_negative.tolist() == far.tolist()


def test_a_deprecated_class(T: Any) -> None:
    with pytest.warns(FutureWarning, match="NLLLoss2d is deprecated: use NLLLoss"):
        made = T.NLLLoss2d(ignore_index=1, reduction="sum")
    x, t = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    assert isinstance(made, T.NLLLoss)
    same(made(x, t), torch.nn.NLLLoss(ignore_index=1, reduction="sum")(x, t), rtol=1e-5, atol=1e-5)

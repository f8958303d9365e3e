"""The loop nest: few sweeps, shared values, the same bytes every time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from losscomp import catalogue, emit, ir
from losscomp.errors import LoweringError
from losscomp.ir import Accumulate, Const, Let, Load, Loop, Op, Reduce, Ref, Start, Store, Var
from losscomp.language import Abs, Hinge, Loss, Norm, Sum, axis, exp, index, log, param, table, tensor
from losscomp.pipeline import compile_loss, kernels

ROOT = Path(__file__).parent.parent
CLASS = Var("classes")


def losses() -> dict[str, Loss]:
    """The kinds of nest that a loss may have."""
    classes = axis("classes")
    c = classes.index()
    x, z, y = tensor("x", classes), tensor("z", classes), index("y", into=classes)
    s, t, a = tensor("s"), tensor("t"), param("a", default=1.0, positive=True)
    log_p = table("log_p", c, log(exp(x[c]) / Sum(exp(x[c]), c)))
    return {name: loss.called(name, doc=name) for name, loss in {
        "pointwise": Loss((s - t)**2 * a),
        "logistic": Loss(log(1 + exp(-s * t))),
        "hinged": Loss(Hinge(1 - s * t, tie=0) + Abs(t)),
        "softmax": Loss(-log_p(y)),
        "soft_labels": Loss(-Sum(z[c] * log_p(c), c)),
        "distance": Loss(Norm(x[c] - z[c], c)),
        "dot": Loss(Sum(x[c] * z[c], c)**2),
    }.items()}


def nests(name: str, arrays: bool = False) -> dict[str, ir.Kernel]:
    """The kernels of a loss, by name."""
    compiled, = compile_loss(losses()[name])
    return {k.name: k for k in kernels(compiled, arrays)}


def loops(kernel: ir.Kernel) -> list[Loop]:
    return [s for s in ir.statements(kernel.body) if isinstance(s, Loop)]


def kernel_of(*body: Any, inputs: Iterable[str] = ("x",), outputs: Iterable[str] = ("loss",)) -> ir.Kernel:
    return ir.Kernel("bad", "a kernel", tuple(ir.Argument(n) for n in inputs), (),
                     tuple(ir.Argument(n, role="output") for n in outputs), (), tuple(body))


ELEMENT = Load("x", (ir.SAMPLE,))
STORE = Store("loss", (ir.SAMPLE,), ELEMENT)


def over_batch(*body: Any) -> Loop:
    return Loop(ir.SAMPLE, (), tuple(body))


SUM = Start("sum", "total", CLASS, frozenset())
BAD = {
    "used before it is computed": (over_batch(Store("loss", (ir.SAMPLE,), Ref("late", frozenset())), Let("late", ELEMENT)),),
    "used outside its loop": (Let("early", Op("exp", (ELEMENT,))), over_batch(STORE)),
    "left unscheduled": (over_batch(Store("loss", (ir.SAMPLE,), Reduce("sum", CLASS, ELEMENT))),),
    "is read and is no argument": (over_batch(Store("loss", (ir.SAMPLE,), Load("y", (ir.SAMPLE,)))),),
    "defined twice": (over_batch(Let("p", ELEMENT), Let("p", Const(1)), STORE),),
    "two nested loops": (over_batch(over_batch(STORE)),),
}


@pytest.mark.parametrize("words", BAD)
@pytest.mark.parametrize("arrays", [False, True])
def test_bad_kernels_are_refused(words: str, arrays: bool) -> None:
    with pytest.raises(LoweringError, match=words):
        ir.check_scheduled(kernel_of(*BAD[words]), arrays)


def test_good_kernels_pass_and_scopes_differ() -> None:
    good = kernel_of(over_batch(Let("p", Op("exp", (ELEMENT,))), Store("loss", (ir.SAMPLE,), Ref("p", frozenset({ir.SAMPLE})))))
    assert ir.check_scheduled(good, False) is good
    inner = Loop(CLASS, (SUM,), (Let("p", Op("exp", (ELEMENT,))), Accumulate(SUM, Ref("p", frozenset({ir.SAMPLE})))))
    late = kernel_of(over_batch(inner, Store("loss", (ir.SAMPLE,), Ref("p", frozenset()))))
    assert ir.check_scheduled(late, True) is late                       # arrays outlive the loop
    with pytest.raises(LoweringError, match="before it is computed"):
        ir.check_scheduled(late, False)
    total = kernel_of(over_batch(inner, Store("loss", (ir.SAMPLE,), Ref("total", frozenset()))))
    assert ir.check_scheduled(total, False) is total                    # what is accumulated does too


@pytest.mark.parametrize("name", ["pointwise", "logistic", "hinged"])
@pytest.mark.parametrize("arrays", [False, True])
def test_pointwise_is_one_pass(name: str, arrays: bool) -> None:
    for kernel in nests(name, arrays).values():
        assert [s.var for s in loops(kernel)] == [ir.SAMPLE], kernel.name
        *first, last = kernel.body
        assert isinstance(last, Loop) and all(isinstance(s, Let) and not ir.free(s.value) for s in first)


@pytest.mark.parametrize(("name", "kernel", "most"), [
    ("softmax", "value", 2), ("softmax", "value_and_grad", 3), ("soft_labels", "value_and_grad", 3),
    ("soft_labels", "value", 3),
    ("dot", "value", 1), ("dot", "value_and_grad", 2), ("distance", "value", 2), ("distance", "value_and_grad", 3),
])
def test_few_sweeps(name: str, kernel: str, most: int) -> None:
    assert sum(s.var.axis == "classes" for s in loops(nests(name)[kernel])) <= most


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("arrays", [False, True])
def test_nothing_is_computed_twice(name: str, arrays: bool) -> None:
    """No two names for one value in one scope; in C a later loop may compute it again."""
    def walk(body: tuple[Any, ...], above: list[ir.Node]) -> None:
        values = list(above)
        for s in body:
            if isinstance(s, Let):
                assert s.value not in values, (kernel.name, s.name)
                values.append(s.value)
            elif isinstance(s, Loop):
                walk(s.body, values)

    for kernel in nests(name, arrays).values():
        walk(kernel.body, [])


@pytest.mark.parametrize("name", losses())
def test_value_and_gradient_share(name: str) -> None:
    """No costly function of the value is called again for the gradient."""
    kernel = nests(name, arrays=True)["value_and_grad"]
    costly = {"exp", "log", "log1p", "expm1", "exp_difference", "softplus", "sqrt", "pow"}
    called: dict[ir.Node, set[str]] = {}
    for s in ir.statements(kernel.body):
        for n in ir.walk(s.value) if isinstance(s, Store | Let) else ():
            if isinstance(n, Op) and n.name in costly:
                called.setdefault(n, set()).add(s.tensor if isinstance(s, Store) else s.name)
    assert all(len(places) == 1 for places in called.values()), called


# Upper bounds, a little above what they are: a rule or the scheduler that grows a kernel has to say so here.
# What a step is multiplied with is selected besides, so that 0 times infinity is 0. The gradient with soft labels adds up all but the
# largest of a sum of its own, which is where a label far above the others is kept.
MOST = {
    ("pointwise", "value"): 3, ("pointwise", "value_and_grad"): 9, ("pointwise", "hvp"): 9, ("logistic", "value"): 3,
    ("logistic", "value_and_grad"): 11, ("hinged", "value_and_grad"): 16, ("softmax", "value"): 11,
    ("softmax", "value_and_grad"): 26, ("softmax", "hvp"): 19,
    ("soft_labels", "value_and_grad"): 37, ("distance", "value_and_grad"): 16, ("dot", "value_and_grad"): 7,
}


@pytest.mark.parametrize(("name", "kernel"), MOST)
def test_operations_do_not_grow(name: str, kernel: str) -> None:
    assert ir.count_operations(nests(name)[kernel]) <= MOST[name, kernel]


EMIT = """
import sys, hashlib
sys.path[:0] = sys.argv[1:3]
from test_schedule import emitted
print(hashlib.sha256(repr(sorted(emitted().items())).encode()).hexdigest())
"""


def emitted() -> dict[str, str]:
    """Every file of some losses: those of this test, and two of the catalogue."""
    files: dict[str, str] = {}
    made = catalogue.load(ROOT / "definitions" / "embedding")
    for loss in [*losses().values(), *list(made.values())[:2]]:
        files |= emit.emit_loss(loss, "again", "test").files
    return files


def test_the_same_bytes_every_time() -> None:
    here = emitted()
    assert here == emitted()
    runs = [subprocess.Popen([sys.executable, "-c", EMIT, str(ROOT), str(ROOT / "tests")], stdout=subprocess.PIPE, text=True,
                             env={"PYTHONHASHSEED": seed, "PATH": ""}) for seed in ("1", "77")]
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs) and said[0] == said[1]
    assert said[0].strip() == hashlib.sha256(repr(sorted(here.items())).encode()).hexdigest()

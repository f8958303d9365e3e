"""The value of a loss for a framework that differentiates it itself: from the smooth form to a kernel without derivatives.

What a framework derives is the text that it is given, so that text has to have our derivatives: nothing is stabilised by a
branch, kinks keep their tie, statements about derivatives stay, and the arm of a selection that does not hold passes none on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sympy as sp

from . import atoms, ir, nodes
from .check import Checked
from .errors import LosscompError
from .ir import Const, Load, Node, Number, Op, Param, Reduce, Size, Var, kind_of
from .lower import ZERO, Env, Lowering, op, parameter, real, where
from .pipeline import Compiled, Formula, argument_of, known_names, plain
from .schedule import Scheduler

RESULTS = ("loss", "denominator")
WHAT = "the loss of each sample, and what it adds to the denominator of the mean"
# What a target spells with its tie, so that its derivative at the tie is ours.
KINKS: dict[type, str] = {atoms.FUNCTIONS[name]: name for name in ("hinge", "larger", "smaller", "step", "root")}
# Slopes that are finite whatever the operands are. Those of |x| and of a hinge are NaN where x is.
LINEAR = frozenset({"add", "sub", "neg", "real", "sign", "step", "larger", "smaller", "relative", "only", "unless", "around"})


class Around(nodes.Node):
    """A read at points between where it is and where it stands still: derivatives of stated slopes are taken there."""

    @property
    def body(self) -> sp.Expr:
        return self.args[0]


def own_slopes(atom: sp.Function) -> list[sp.Expr]:
    """The numbers that an atom is of and its slope by each, in turn, where a framework is to take these; else nothing."""
    record = atoms.ATOMS[type(atom).__name__]
    moving = [(k, a) for k, a in enumerate(atom.args) if record.slopes[k] is not None]
    if not record.by_slopes or not all(isinstance(a, nodes.Load) for _, a in moving):
        return []
    return [part for k, a in moving for part in (a, atom.fdiff(k + 1))]


class CompositeLowering(Lowering):
    """Lowering that keeps what says how to differentiate."""

    def cell(self, record: nodes.TensorRecord, index: tuple[sp.Expr, ...], env: Env) -> tuple[Node, ...]:
        """A number stands as it is: PyTorch itself refuses a position that an axis does not have."""
        return tuple(self.position(i, env) if i.is_number else node
                     for i, node in zip(index, super().cell(record, index, env), strict=True))

    def lower(self, expr: sp.Basic, env: Env) -> Node:
        if isinstance(expr, sp.Expr) and expr.is_number:                 # which stands still whatever is said of it
            return super().lower(plain(expr), env)
        match expr:
            case nodes.Stated():
                return self.stated(expr, env)
            case nodes.StopGradient():
                return self.still(real(self(expr.body, env)))
            case nodes.StraightThrough():
                value, through = real(self(expr.body, env)), real(self(expr.through, env))
                moved = motion(through)
                if constant(through):
                    return self.still(value)
                return op("add", self.still(value), moved) if overflows(moved) else Op("straight_through", (value, through))
            case Around():
                return self.aside("around", "near", self(expr.body, env))
            case nodes.Where(args=(condition, a, b)):
                test = self(condition, env)
                return where(test, self.held("only", test, self(a, env)), self.held("unless", test, self(b, env)))
            case atoms.xlogy(args=(x, y)) if x == y:                     # its derivative at 0 is log(0), not log(0) + 0 / 0
                return Op("xlogx", (real(self(x, env)),))
            case sp.Function() if atoms.is_atom(expr) and (slopes := own_slopes(expr)):
                return self.stated(nodes.Stated(expr, *slopes), env)
        if type(expr) in KINKS:
            return Op(KINKS[type(expr)], tuple(real(self(a, env)) for a in expr.args))
        return super().lower(expr, env)

    def stated(self, expr: nodes.Stated, env: Env) -> Node:
        """The value, which stands still where slopes are stated; then each read with its slope along the way to it."""
        still = {load: nodes.StopGradient(load) for load, _ in expr.slopes}
        near: dict[Any, sp.Expr] = {load: Around(load) for load, _ in expr.slopes}
        for rule in (still, near):
            self.names = {**{nodes.substitute(e, rule): name for e, name in self.names.items()}, **self.names}
        parts = [real(self(nodes.substitute(expr.body, still), env))]
        for load, slope in expr.slopes:
            parts += [self(load, env), real(self(nodes.substitute(slope, near), env))]
        return Op("stated", tuple(parts))

    def still(self, node: Node) -> Node:
        """The node as a constant."""
        return node if constant(node) else self.aside("stop_gradient", "still", node)

    def aside(self, name: str, word: str, of: Node) -> Node:
        """An operation on a read, called after it."""
        node = Op(name, (of,))
        inner = of.tensor if isinstance(of, Load) else self.hints.get(of)
        return self.called(f"{word}_{inner}", node) if inner else node

    def weighed(self, parts: list[sp.Expr]) -> list[sp.Expr]:
        """As the formula has them: one product has one derivative, without a selection."""
        return parts

    def log_sum_exp(self, lse: nodes.Reduce, env: Env) -> tuple[Node, Node]:
        """The largest term, as a constant shift, and the logarithm of the sum relative to it."""
        taken = {env[i] for i in nodes.free_indices(lse)}
        var = next(v for k in range(9) if (v := Var(lse.bound.axis.name, k)) not in taken)
        largest = self(nodes.Reduce("max", lse.body, lse.bound), env)
        shift = self.called("largest", self.still(largest))
        body = real(self(lse.body, {**env, lse.bound: var}))
        return shift, self.called("log_mass", Reduce("log_mass", var, Op("relative", (body, shift))))

    def below(self, a: sp.Expr, body: sp.Expr, bound: nodes.Index, env: Env, exponential: bool = True) -> Node:
        """The largest is the constant shift of `log_sum_exp` here too."""
        assert not exponential
        return op("sub", self(a, env), self.called("largest", self.still(self(nodes.Reduce("max", body, bound), env))))

    def log_add_exp(self, terms: list[Node]) -> Node:
        return Op("log_add_exp", tuple(terms))

    def exponential(self, power: sp.Expr, env: Env) -> Node:
        return op("exp", self(power, env))

    def is_number(self, node: Node) -> bool:
        """Is this one number for all samples and positions, when it is computed?"""
        return not any(isinstance(n, Load | Var) for n in ir.walk(node))

    def held(self, side: str, condition: Node, arm: Node) -> Node:
        """The arm of a selection, so that no derivative passes through it where the other arm holds.

        0 times an infinite slope would be NaN. So what an arm reads stands still there: as few and as late parts of it as have
        only finite slopes below them.
        """
        if linear(arm) or self.is_number(condition):                     # a number chooses once, for all
            return arm
        done: dict[Node, Node] = {}

        def visit(node: Node) -> Node:
            if node not in done:
                done[node] = new = inside(node)
                if node in self.hints:
                    self.called(self.hints[node], new, node in self.kept)
            return done[node]

        def inside(node: Node) -> Node:
            if constant(node) or kind_of(node) != "real":
                return node
            if linear(node) and not (isinstance(node, Op) and node.name in ("neg", "mul", "div")):
                return Op(side, (condition, node))
            if isinstance(node, Op):
                kept = node.args[:1] if node.name == "where" else ()
                return Op(node.name, (*kept, *map(visit, node.args[len(kept):])))
            assert isinstance(node, Reduce)
            if node.var in ir.free(condition):                           # one condition for each position: the whole is held, for each
                return Op(side, (condition, node))
            return Reduce(node.op, node.var, visit(node.body))

        return visit(arm)


@cache
def constant(node: Node) -> bool:
    """Does nothing that has a derivative stand below?"""
    if kind_of(node) != "real" or (isinstance(node, Op) and node.name == "stop_gradient"):
        return True
    return not isinstance(node, Load) and all(map(constant, node.children))


@cache
def linear(node: Node) -> bool:
    """Are the slopes of a node finite whatever its values are?"""
    match node:
        case Load() | Const() | Number() | Param() | Size():
            return True
        case _ if constant(node):
            return True
        case Op("mul", (a, b)):
            return linear(a) and linear(b) and (scalar(a) or scalar(b))
        case Op("div", (a, b)):
            return linear(a) and scalar(b) and not any(isinstance(n, Param) for n in ir.walk(b))    # which may be 0
        case Op("where", (_, a, b)):
            return linear(a) and linear(b)
        case Op(name, args) if name in LINEAR:
            return all(linear(a) for a in args if kind_of(a) == "real")
        case Reduce("sum" | "max", _, body):
            return linear(body)
    return False


def motion(node: Node) -> Node:
    """0, which moves as the node does: term by term, as an exponential that overflows would leave nothing of the others."""
    match node:
        case _ if constant(node):
            return ZERO
        case Op("add" | "sub" as name, (a, b)):
            return op(name, motion(a), motion(b))
        case Op("where", (condition, a, b)):
            return where(condition, motion(a), motion(b))
        case Reduce("sum", var, body):
            return Reduce("sum", var, motion(body))
        case Op("exp", (x,)):
            return Op("exp_motion", (x,))
    return Op("motion", (node,))


def overflows(node: Node) -> bool:
    """Is there an exponential in a motion?"""
    return any(isinstance(n, Op) and n.name == "exp_motion" for n in ir.walk(node))


def scalar(node: Node) -> bool:
    """Is this a number that no tensor is in?"""
    return not any(isinstance(n, Load) for n in ir.walk(node))


def composite(compiled: Compiled, wanted: tuple[str, ...] = RESULTS) -> ir.Kernel:
    """The loss of a sample, and its denominator where that is not 1, of one variant. Raises LosscompError."""
    s = signature_of(compiled.smooth, wanted)
    lowering = CompositeLowering(names_of(compiled))
    try:
        results = results_of(compiled.smooth, wanted)
        stores = [ir.Store(name, (ir.SAMPLE,), lowering(expr, {})) for name, expr in results.items()]
    except LosscompError as error:
        raise error.at(compiled.form.loss.path or compiled.form.loss.name) from None
    names = frozenset({a.name for a in s.inputs + s.outputs} | {p.name for p in s.params})
    body = Scheduler(True, lowering.hints, ir.taken_names(names, s.axes))(stores, ir.SAMPLE)
    return ir.check_scheduled(ir.Kernel("value", WHAT, s.inputs, s.params, s.outputs, s.axes, body), True)


def results_of(form: Checked, wanted: tuple[str, ...] = RESULTS) -> dict[str, sp.Expr]:
    """What is computed for each sample."""
    every = {"loss": form.value} | ({} if form.weight == 1 else {"denominator": form.weight})
    return {name: expr for name, expr in every.items() if name in wanted}


def names_of(compiled: Compiled) -> dict[sp.Expr, str]:
    """What a person calls sub-expressions."""
    return {**known_names(compiled.form.names, lambda expr: expr), compiled.smooth.value: "value"}


def signature_of(form: Checked, wanted: tuple[str, ...] = RESULTS) -> ir.Signature:
    """Every input and every scalar of the form, in the order of declaration."""
    about = Formula("value", WHAT, ())
    inputs = tuple(argument_of(t, about) for t in form.inputs)
    outputs = tuple(ir.Argument(name, role="output") for name in results_of(form, wanted))
    axes = tuple(dict.fromkeys(a for arg in inputs for a in (*arg.axes, *([arg.into] if arg.into else []))))
    return ir.Signature(inputs, tuple(parameter(p) for p in form.params), outputs, axes)

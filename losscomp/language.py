"""What authors of definitions import.

A definition is a module that declares its inputs and builds one formula about one sample; the batch is implicit:

    input, target = tensor("input"), tensor("target", fixed=True)
    delta = param("delta", default=1, positive=True)
    error = input - target
    my_loss = Loss(Piecewise((error**2 / 2, Abs(error) < delta), (delta * (Abs(error) - delta / 2), True)))

Everything is an ordinary SymPy expression. A kink says which derivative holds at the tie (`tie=`), a reduction binds an
index, an integer tensor used as an index is a gather.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy as sp
from sympy import Rational, erf, exp, log, oo, pi, sqrt, tanh

from . import atoms
from .atoms import Abs, Sign, xlogy
from .errors import DefinitionError, LosscompError
from .hierarchy import Choice, Cuts, Hierarchy, classes, each, layers
from .nodes import (
    Axis,
    AxisRecord,
    Chosen,
    Delta,
    Domain,
    Index,
    Load,
    LogAddExp,
    Named,
    Param,
    ParamRecord,
    Reduce,
    Rounded,
    Stated,
    StopGradient,
    StraightThrough,
    Tensor,
    TensorRecord,
    Where,
    substitute,
)
from .reuse import base, reused

__all__ = [
    "Abs", "Choice", "Computed", "Difference", "Eq", "Hierarchy", "Hinge", "If", "LogAddExp", "LogSumExp", "Loss", "Max", "MaxOver",
    "Min", "Ne", "Norm", "Overload", "Piecewise", "Rational", "Sign", "Sqrt", "Sum", "Where", "axis", "base", "classes", "clip", "cuts",
    "each", "erf", "exp", "index", "labels", "layers", "length", "log", "named", "oo", "option", "param", "pi", "reduction_is", "reused",
    "size", "sqrt", "state", "stated", "stop_gradient", "straight_through", "table", "tanh", "tensor", "xlogy",
]

_order = itertools.count()


def restart_order() -> None:
    """Begin a definition file: declarations are numbered from 0, so that a file gives the same code whatever was loaded before."""
    global _order
    _order = itertools.count()


SHAPES = ("mutual", "expand", "same", "reduced")


# Declarations

def axis(name: str, *, position: int = -1, vector: bool = False, size: Any = None, extent: Any = None) -> Axis:
    """A named axis of the tensors of one sample; in a formula it stands for its size.

    Args:
        name: also the name of the loop in the emitted code.
        position: where the axis stands in the arrays that users pass. -1 is last; 1 is dimension 1 with any dimensions
            behind it, as classification losses have it in PyTorch (dimension 0 of a tensor of one sample); 0 is dimension 0,
            before the batch, as sequences have it.
        vector: the axis is never empty, a number is a vector of length 1, and one sample may have a batch of 1 or none, as its
            label has it: so PyTorch's margin losses take their tensors.
        size: how long it is in arrays, where that depends on another axis: labels + 1.
        extent: how many positions a sample has, a formula in lengths and other axes. Such an axis is one of tables and
            reductions, and of no array; its indices may be used along an array's axis that is at least as long.
    """
    size = None if size is None else sp.sympify(size)
    if size is not None and not (len(size.atoms(Axis)) == 1 and (size - next(iter(size.atoms(Axis)))).is_Integer):
        raise DefinitionError(f"axis {name!r} has size={size}", repair="Say it as another axis plus an integer: size=labels + 1.")
    return Axis(AxisRecord(name, position, None if extent is None else sp.sympify(extent), size, vector))


def _domain(positive: bool, nonnegative: bool, between: tuple[float, float] | None) -> Domain:
    if between is not None:
        return Domain(None if between[0] == -oo else float(between[0]), float(between[1]))
    return Domain(0.0, open_low=True) if positive else Domain(0.0) if nonnegative else Domain()


class TensorRef:
    """A tensor with axes of its own: `tensor[i, j]` is an element; an integer expression as an index is a gather."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, position: Any) -> Load:
        position = tuple(map(sp.sympify, position if isinstance(position, tuple) else (position,)))
        axes = self.tensor.record.axes
        if len(position) != len(axes):
            raise DefinitionError(
                f"{self.tensor.name} has the axes ({', '.join(a.name for a in axes)}) and was read with {len(position)} "
                f"indices", repair=f"Read it as {self.tensor.name}[{', '.join(a.name + '_index' for a in axes)}].")
        for place, (i, ax) in enumerate(zip(position, axes, strict=True)):
            if isinstance(i, Index) and i.axis != ax and i.axis.record.extent is None:
                raise DefinitionError(
                    f"index {place} of {self.tensor.name} runs along {ax.name}, and was given an index of {i.axis.name}",
                    repair=f"Use an index made with {ax.name}.index().")
            if isinstance(i, Axis) or not getattr(i, "is_integer", False):
                raise DefinitionError(
                    f"index {place} of {self.tensor.name} is {i}, which is no position along {ax.name}",
                    repair=f"Use {ax.name}.index(), or an integer tensor declared with index(..., into={ax.name}).")
            if isinstance(i, Load) and i.tensor.record.into not in (None, ax):
                into = i.tensor.record.into
                raise DefinitionError(
                    f"{i.tensor.name} points into {into.name if into else 'nothing'}, but index {place} of "
                    f"{self.tensor.name} runs along {ax.name}",
                    repair=f"Declare it with index({i.tensor.name!r}, into={ax.name}).")
        return Load(self.tensor, *position)


def tensor(name: str, *axes: Axis, per_sample: bool = True, optional: bool = False, default: float | None = None,
           fixed: bool = False, positive: bool = False, nonnegative: bool = False,
           between: tuple[float, float] | None = None, shape: str = "mutual") -> Any:
    """A tensor of real numbers.

    Args:
        name: the argument's name.
        axes: the axes that one sample of it has; none makes it one number a sample, to be used in formulas as it is.
        per_sample: False for a tensor that all samples share, such as class weights.
        optional: the caller may leave it out; it is then 1 (or `default`) everywhere.
        fixed: no gradient by default; the caller may still ask for one. Optional tensors are fixed.
        positive, nonnegative, between: the domain, enforced on every target. NaN passes, and gives NaN.
        shape: "mutual" broadcasts with the others; "expand" may be expanded to their shape but not enlarge it; "same"
            must have exactly their shape; "reduced" may also lack the last dimension, or have size 1 in one.
    """
    if shape not in SHAPES:
        raise DefinitionError(f"tensor {name!r} has shape={shape!r}", repair=f"Use one of {', '.join(SHAPES)}.")
    given = default if default is not None else 1.0 if optional else None
    made = Tensor(TensorRecord(name, axes, per_sample=per_sample, default=given, fixed=fixed or given is not None,
                               domain=_domain(positive, nonnegative, between), shape=shape, order=next(_order)))
    return TensorRef(made) if axes else Load(made)


def index(name: str, *axes: Axis, into: Axis | None, ignore: str | None = None, length: Any = None, packed: bool = False) -> Any:
    """A tensor of integers that point into an axis. Values out of range are errors.

    Args:
        into: the axis that the values point into; None for any integers, which formulas may only compare.
        ignore: the name of a parameter (default -100); samples whose value equals it are left out of the loss and of
            the denominator of the mean.
        length: how much of the last axis belongs to each sample, made with `length`; what lies behind it may be anything.
        packed: the caller may also give all samples end to end, in one dimension.
    """
    if ignore is not None and axes:
        raise DefinitionError(f"index {name!r} has axes and ignore={ignore!r}: only an index of one value a sample can be "
                              f"ignored", repair="Drop ignore=, and mask with Where.")
    ragged = length.tensor.name if isinstance(length, Load) else None
    if (length is not None and (ragged is None or not axes or length.tensor.record.measures != axes[-1])) or (packed and ragged is None):
        raise DefinitionError(f"index {name!r} has length={length}, packed={packed}, which does not measure its last axis",
                              repair="Pass length=length(name, of=axis) with its last axis.")
    made = Tensor(TensorRecord(name, axes, integer=True, into=into, ignore=ignore, fixed=True, shape="same", length=ragged,
                               packed=packed, order=next(_order)))
    return TensorRef(made) if axes else Load(made)


def length(name: str, *, of: Axis) -> Load:
    """How many positions of an axis belong to each sample: an integer from 0 to the axis's size; anything else is an error."""
    return Load(Tensor(TensorRecord(name, integer=True, measures=of, fixed=True, shape="same", domain=Domain(0.0), order=next(_order))))


def labels(name: str, into: Axis, *, until: int = -1) -> TensorRef:
    """A set of labels for each sample: users give positions along an axis, as many as the axis is long, which end at the first
    `until`. In a formula `labels[c]` is how often c is among them. Values that are neither positions nor `until` are errors.

    They are counted before kernels see them: a kernel takes the counts.
    """
    return TensorRef(Tensor(TensorRecord(name, (into,), integer=True, fixed=True, shape="same", until=until, order=next(_order))))


def param(name: str, *, default: Any, positive: bool = False, nonnegative: bool = False,
          between: tuple[float, float] | None = None, special: tuple[Any, ...] = (), only: tuple[Any, ...] = (),
          integer: bool = False, into: Axis | None = None) -> Param:
    """A scalar chosen by the caller at run time.

    Args:
        special: values that change the formula's shape (p = 2, smoothing = 0); each is compiled on its own.
        only: the same, where no other value is allowed.
        into: an integer that points into this axis. A value out of range is an error.
    """
    return Param(ParamRecord(name, default, _domain(positive, nonnegative, between), tuple(map(exact, only or special)),
                             only_special=bool(only), integer=integer or into is not None, into=into, order=next(_order)))


def reduction_is(word: str) -> Any:
    """The condition that the caller asked for this reduction, for a loss whose samples count differently in it."""
    if word not in REDUCTIONS:
        raise DefinitionError(f"the reduction {word!r} is not known", repair=f"Known: {', '.join(REDUCTIONS)}.")
    chosen = Param(ParamRecord(f"reduction_is_{word}", 0, Domain(0.0, 1.0), integer=True, reduction=word, order=next(_order)))
    return sp.Eq(chosen, 1)


def exact(value: Any) -> sp.Basic:
    """A number as SymPy compares it: 2.0 is 2."""
    value = sp.sympify(value)
    return sp.Integer(int(value)) if isinstance(value, sp.Float) and value == int(value) else value


def option(name: str, *, default: bool) -> Param:
    """A yes or no of the caller that is settled at build time; use it with `If`."""
    return Param(ParamRecord(name, default, special=(sp.true, sp.false), only_special=True, order=next(_order)))


def size(name: str) -> Param:
    """A whole number that says how large a hierarchy is, at least 1."""
    return Param(ParamRecord(name, None, Domain(1.0), integer=True, order=next(_order)))


def cuts(name: str, of: Param) -> Cuts:
    """Where the range from 0 to a size is cut into pieces: whole numbers of the caller's in increasing order, between the two.

    In a formula, `cuts[k]` is where the k-th piece ends, and `cuts.count` how many there are: one more than were given, as the last one
    ends at the size.
    """
    pieces = Axis(AxisRecord(f"pieces of {of.name}", size=of))
    return Cuts(Tensor(TensorRecord(name, (pieces,), integer=True, per_sample=False, fixed=True, order=next(_order))))


# Formulas

def Eq(a: Any, b: Any) -> Any:
    """The condition a = b. For a parameter and one of its special values it is settled at build time."""
    if isinstance(a, Param) and a.record.special and exact(b) in a.record.special:
        return Chosen(a, exact(b))
    return sp.Eq(a, b)


def Ne(a: Any, b: Any) -> Any:
    """The condition that a and b differ."""
    same = Eq(a, b)
    return ~same if isinstance(same, Chosen) else sp.Ne(a, b)


def If(condition: Any, a: Any, b: Any) -> sp.Expr:
    """a where the condition (or an option) holds, else b."""
    if isinstance(condition, Param):
        condition = Chosen(condition, sp.true)
    return Where(condition, a, b)


def Piecewise(*arms: tuple[Any, Any]) -> sp.Expr:
    """The expression of the first condition that holds; at a joint, that arm's derivative holds too."""
    *first, (last, otherwise) = arms
    if otherwise is not True and otherwise is not sp.true:
        raise DefinitionError("the last arm of a Piecewise has a condition", repair="Write it as (expression, True).")
    result = sp.sympify(last)
    for value, condition in reversed(first):
        result = If(condition, value, result)
    return result


def _tie(name: str, tie: Any) -> sp.Expr:
    if tie is None:
        raise DefinitionError(
            f"{name} has a kink where its arguments are equal, and no convention for its derivative there",
            repair=f"Say it: {name}(..., tie=1) passes the derivative of the first argument at a tie, tie=0 that of the "
                   f"second, tie=Rational(1, 2) half of each.")
    return sp.sympify(tie)


def Max(a: Any, b: Any, *, tie: Any = None) -> sp.Expr:
    """The larger of two; `tie` is the share of the derivative that `a` gets where they are equal."""
    return atoms.larger(a, b, _tie("Max", tie))


def Min(a: Any, b: Any, *, tie: Any = None) -> sp.Expr:
    """The smaller of two; `tie` is the share of the derivative that `a` gets where they are equal."""
    return atoms.smaller(a, b, _tie("Min", tie))


def clip(x: Any, low: Any, high: Any) -> sp.Expr:
    """x moved into an interval, whose ends are numbers of the type that is computed in. Its derivative is 1 inside and at the ends,
    0 outside, as that of TensorFlow's clip_by_value is."""
    return Min(Max(x, bound(low), tie=1), bound(high), tie=1)


def bound(value: Any) -> sp.Expr:
    """A constant in the type that is computed in, where that makes a difference."""
    value = sp.sympify(value)
    return value if value.is_Atom else Rounded(value)


def Hinge(x: Any, *, tie: Any = None) -> sp.Expr:
    """max(x, 0); `tie` is its derivative at 0."""
    return atoms.hinge(x, _tie("Hinge", tie))


def Sqrt(x: Any) -> sp.Expr:
    """The square root whose derivative is 0 at 0, as a norm wants it."""
    return atoms.root(x)


def _over(op: str, body: Any, i: Index) -> sp.Expr:
    if not isinstance(i, Index):
        raise DefinitionError(f"a reduction binds an index, and was given {i}",
                              repair="Make one with axis('classes').index().")
    return Reduce(op, body, i)


def Sum(body: Any, i: Index) -> sp.Expr:
    """The sum over an index."""
    return _over("sum", body, i)


def MaxOver(body: Any, i: Index) -> sp.Expr:
    """The largest value over an index; ties share the derivative evenly."""
    return _over("max", body, i)


def LogSumExp(body: Any, i: Index) -> sp.Expr:
    """log(sum(exp(body))) over an index."""
    return _over("logsumexp", body, i)


def Norm(body: Any, i: Index, p: Any = 2, *, plus: Any = 0) -> sp.Expr:
    """The p-norm over an index, p >= 0; 0 counts what is not 0. Its derivative is 0 at the zero vector.

    Args:
        plus: added to the sum of squares, where p is 2.

    In a general norm the terms are divided by a power of two near the largest, so that no power of them overflows or vanishes;
    for roots of sums of squares lowering does the same.
    """
    unit = atoms.binade(MaxOver(Abs(body), i))
    scaled = Named("scaled", body / unit)
    general = unit * atoms.abs_power(Sum(atoms.abs_power(scaled, p), i), 1 / sp.sympify(p))
    arms = {
        sp.S.Zero: Sum(Where(sp.Eq(body, 0), 0, 1), i),
        sp.S.One: Sum(Abs(body), i),
        sp.S(2): Sqrt(Sum(body**2, i) + exact(plus)),
        sp.oo: MaxOver(Abs(body), i),
    }
    if not isinstance(p, Param):
        return arms.get(exact(p), general)
    settled = [(arms[value], Eq(p, value)) for value in p.record.special if value in arms]
    return Piecewise(*settled, (general, True))


def named(name: str, body: Any) -> sp.Expr:
    """A sub-expression that keeps its name in the emitted code, and is differentiated as one piece."""
    return Named(name, body)


def table(name: str, i: Index, body: Any) -> Callable[[Any], sp.Expr]:
    """A named table over an index: `table("log_p", c, ...)(label)` is its cell at `label`."""
    return lambda position: Named(name, substitute(body, {i: position}))


class State:
    """A table over indices that a definition computes cell by cell; a cell may read earlier ones. See `state`."""

    def __init__(self, tensor: Tensor, indices: tuple[Index, ...], outside: Any, start: Mapping[tuple[int, ...], Any]) -> None:
        self.tensor, self.indices, self.expr = tensor, indices, None
        self.outside, self.start = sp.sympify(outside), {k: sp.sympify(v) for k, v in start.items()}

    def __getitem__(self, position: Any) -> Load:
        position = tuple(map(sp.sympify, position if isinstance(position, tuple) else (position,)))
        if len(position) != len(self.indices):
            raise DefinitionError(f"{self.tensor.name} has {len(self.indices)} indices and was read with {len(position)}",
                                  repair=f"Read it at one position along each of {', '.join(i.axis.name for i in self.indices)}.")
        return Load(self.tensor, *position)

    def __setitem__(self, position: Any, expr: Any) -> None:
        if (position if isinstance(position, tuple) else (position,)) != self.indices or self.expr is not None:
            raise DefinitionError(f"{self.tensor.name}[{position}] cannot be set",
                                  repair="Say once what a cell is, at the indices that the table was declared with.")
        self.expr = sp.sympify(expr)


def state(name: str, *indices: Index, outside: Any = 0, start: Mapping[tuple[int, ...], Any] | None = None,
          into: Axis | None = None) -> State:
    """A table that is computed cell by cell: `alpha = state("alpha", t, s)`, then `alpha[t, s] = ...` says what a cell is.

    A cell may read cells of tables that are declared earlier, and earlier cells of its own table, such as alpha[t - 1, s]; the
    order in which cells are computed is found from that. A loss lists its tables: Loss(..., tables=(alpha,)).

    Args:
        outside: what a cell before the first is (at a negative position).
        start: cells outside that are something else: {(-1, 0): 0}.
        into: the axis that a table of integers points into; `outside` may be anything then.
    """
    record = TensorRecord(name, tuple(i.axis for i in indices), integer=into is not None, into=into, fixed=True, state=True,
                          order=next(_order))
    return State(Tensor(record), indices, outside, start or {})


def stop_gradient(body: Any) -> sp.Expr:
    """The value, taken as a constant by every derivative."""
    return StopGradient(sp.sympify(body))


def straight_through(value: Any, through: Any) -> sp.Expr:
    """The value of the first, the derivative of the second."""
    return StraightThrough(sp.sympify(value), sp.sympify(through))


def stated(value: Any, slopes: Mapping[Any, Any]) -> sp.Expr:
    """A value whose derivative by some inputs is stated, where a peer documents one that is not the derivative."""
    for key in slopes:
        if not isinstance(key, Load):
            raise DefinitionError(f"a stated slope is by an input, and was given {key}",
                                  repair="Name an input, or an element of one: {input: slope}, {input[c]: slope}.")
    flat = [sp.sympify(part) for pair in slopes.items() for part in pair]
    return Stated(sp.sympify(value), *flat)


# Losses

@dataclass(frozen=True)
class Reduction:
    """How the totals over the batch become the loss: a formula in TOTAL (sum of values), WEIGHT, COUNT and BATCH."""

    name: str
    formula: sp.Expr | None


TOTAL, WEIGHT = sp.Symbol("total", real=True), sp.Symbol("weight", real=True)
COUNT, BATCH = sp.Symbol("count", real=True), sp.Symbol("batch", real=True)
REDUCTIONS: dict[str, Reduction] = {r.name: r for r in (
    Reduction("none", None),
    Reduction("mean", TOTAL / WEIGHT),
    Reduction("sum", TOTAL),
    Reduction("batchmean", TOTAL / BATCH),
)}


@dataclass(frozen=True)
class Computed:
    """A function that the caller may give: then the loss is another one of the library, of what the function makes of the tensors.

    Autograd goes through the function in PyTorch; elsewhere gradients are by what it computed.

    Attributes:
        function: the name of the argument.
        loss: the name of the other loss; what the two have in common is passed on.
        tensors: for each tensor of the other loss, the names of those that the function is called with.
        when: the option without which a tensor is not computed, by its name.
    """

    function: str
    loss: str
    tensors: Mapping[str, str]
    when: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Where a dialect differs from the loss that it is a dialect of: a condition on the inputs of one sample, and what is other there.

    Where no condition of a dialect holds, value and gradients are those of its base. `when` is a condition, or a pair of a condition
    with an index: then it is enough that it holds somewhere along that axis. `mean` marks what only the mean shows.
    """

    name: str
    what: str
    when: Any
    mean: bool = False

    @property
    def indicator(self) -> sp.Expr:
        """A formula that is above 0 where the difference is."""
        condition, i = self.when if isinstance(self.when, tuple) else (self.when, None)
        cell = indicator(condition)
        return cell if i is None or cell.is_number else MaxOver(cell, i)


def indicator(condition: Any) -> sp.Expr:
    """1 where a condition holds, else 0; selections among conditions stay selections."""
    if isinstance(condition, Where):
        return Where(condition.condition, *map(indicator, condition.args[1:]))
    return Where(condition, 1, 0)


class Shown:
    """What a definition does in a notebook."""

    def compile(self, target: str = "numpy", name: str = "loss") -> Any:
        """The loss as functions, at once: call the result, or its `value_and_grad`, `hvp` and so on. Nothing is written but to the cache.

        Args:
            target: "numpy", or "c", which takes a compiler, and at first some seconds.
            name: what the functions call it, where no definition file has named it.
        """
        from .live import compile_now

        return compile_now(self, target, name)                # type: ignore[arg-type]

    def _repr_latex_(self) -> str | None:
        """The formula of one sample; nothing where the definition is not sound, which `compile` says."""
        from .check import check
        from .latex import latex_of

        try:
            forms = [check(form)[0] for form in getattr(self, "forms", (self,))]                 # type: ignore[arg-type]
        except LosscompError:
            return None
        return "\n".join(rf"$\displaystyle {latex_of(form)}$" for form in forms)


@dataclass
class Loss(Shown):
    """A loss: the formula for one sample, how samples are averaged, and the signature that users see.

    Attributes:
        value: the formula.
        tables: the tables that it reads, each after those that it reads itself.
        mean_over: what one sample adds to the denominator of the mean.
        like: the peer that it is held against, as an import path.
        module: the name of the class form.
        module_signature: the names of its arguments in order, where it does not take all that the function takes besides the
            tensors that must be given; "*" stands before those that are given by name.
        forward: what the module calls the tensors of a call, where that is not what the function calls them.
        signature: the names of the arguments in order; "reduction", "size_average" and "reduce" stand where the peer has
            them. By default tensors and parameters in the order of declaration, with "reduction" after the tensors that
            must be given; "*" stands before those that are given by name.
        reductions: the words that `reduction` accepts.
        computed: a function that the caller may give.
        aliases: other names of the class form, deprecated ones of the peer.
        same_ndim: whether the tensors must have the same number of dimensions.
        rewrites: the names of stability rules that the author asks for; they are honoured and shown.
        notes: what a user should know, such as where it differs from its peer.
        default, module_default: the word for `reduction` where the caller says none, of the function and of the class form.
        words: other words for reductions: {"sum_over_batch_size": "mean"}.
        dialect_of: the loss that this is another framework's form of; `plain` is the formula of that one in the inputs of this one,
            `plain_mean_over` its denominator, and `differences` says where the two differ.
        name, doc, path, names: filled in by the catalogue (names: what the author called each sub-expression).
    """

    value: Any
    mean_over: Any = sp.S.One
    tables: tuple[State, ...] = ()
    like: str = ""
    module: str = ""
    module_signature: str = ""
    forward: str = ""
    signature: str = ""
    reductions: tuple[str, ...] = ("none", "mean", "sum")
    computed: Computed | None = None
    aliases: tuple[str, ...] = ()
    same_ndim: bool = False
    rewrites: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    default: str = "mean"
    module_default: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    dialect_of: str = ""
    plain: Any = None
    plain_mean_over: Any = sp.S.One
    differences: tuple[Difference, ...] = ()
    name: str = ""
    doc: str = ""
    path: str = ""
    names: dict[sp.Expr, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.value, self.mean_over = sp.sympify(self.value), sp.sympify(self.mean_over)
        unknown = [r for r in (*self.reductions, self.default, *self.words.values()) if r not in REDUCTIONS]
        if unknown:
            raise DefinitionError(f"the reduction {unknown[0]!r} is not known", repair=f"Known: {', '.join(REDUCTIONS)}.")

    @property
    def exprs(self) -> sp.Tuple:
        """Every formula of the definition: value and denominator, tables, and the extents of the axes that these use."""
        read = sp.Tuple(self.value, self.mean_over, *(t.expr for t in self.tables if t.expr is not None))
        axes = {i.axis for i in read.atoms(Index)} | {i.axis for t in self.tables for i in t.indices}
        return sp.Tuple(*read, *(a.record.extent for a in sorted(axes, key=lambda a: a.key) if a.record.extent is not None))

    def called(self, name: str, **fields: Any) -> Loss:
        """The same loss under a name."""
        return replace(self, name=name, **fields)


@dataclass
class Overload(Shown):
    """Several formulas under one name and one signature, told apart by which tensor is an index and which is real."""

    forms: tuple[Loss, ...]
    like: str = ""
    module: str = ""
    module_signature: str = ""
    forward: str = ""
    signature: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""
    doc: str = ""
    path: str = ""

    def __init__(self, *forms: Loss, **fields: Any) -> None:
        self.forms = forms
        for key, value in fields.items():
            setattr(self, key, value)


Definition = Loss | Overload

# What an unwary author may reach for in SymPy, and what to write instead.
INSTEAD: dict[type, str] = {
    sp.Max: "Max(a, b, tie=...) of losscomp.language, which says what holds at the tie",
    sp.Min: "Min(a, b, tie=...) of losscomp.language, which says what holds at the tie",
    sp.Heaviside: "Where(x > 0, 1, 0) of losscomp.language",
    sp.Piecewise: "Piecewise of losscomp.language",
    sp.Sum: "Sum(body, index) of losscomp.language",
    sp.Indexed: "tensor(name, axis)[index] of losscomp.language",
    sp.KroneckerDelta: "Where(Eq(i, j), 1, 0) of losscomp.language",
}
__all__ += ["BATCH", "COUNT", "Delta"]

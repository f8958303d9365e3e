"""Kernels that share a text: none of them does more than it would alone, and no name of a definition gets in the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
from fuzzing import Grown
from support import COMPILER, library

from losscomp import catalogue, emit, ir, pipeline
from losscomp.family import families
from losscomp.ir import Accumulate, Family, Flag, Load, Loop, Member, Node, Op, Ref, Store
from losscomp.keep import refined
from losscomp.language import Abs, If, Loss, Sum, axis, exp, log, named, option, param, tensor
from losscomp.schedule import rebuild

CATALOGUE = catalogue.load(catalogue.builtin_definitions())


def holds(condition: Node, flags: dict[str, bool]) -> bool | None:
    """Whether a condition on flags is true; None where it is about more than flags."""
    if isinstance(condition, Flag):
        return flags[condition.name]
    if isinstance(condition, Op) and condition.name in ("or", "and", "not"):
        known = [holds(a, flags) for a in condition.args]
        together: dict[str, Any] = {"or": any, "and": all, "not": lambda parts: not parts[0]}
        return None if None in known else together[condition.name](known)
    return None


def settle(node: Node, flags: dict[str, bool]) -> Node:
    """The node with every flag settled, as a C compiler sees it."""
    def change(n: Node) -> Node | None:
        if isinstance(n, Op) and n.name == "where" and (known := holds(n.args[0], flags)) is not None:
            return settle(n.args[1 if known else 2], flags)
        return None

    return rebuild(node, change)


def alive(family: Family, member: Member) -> list[Any]:
    """The statements that are left of a family for one member."""
    flags = dict(zip(family.kernel.flags, member.flags, strict=True))
    wanted = {a.name for a in member.signature.outputs}
    used: set[str] = set()

    def prune(body: Iterable[Any]) -> list[Any]:
        out: list[Any] = []
        for s in reversed(list(body)):
            if isinstance(s, Loop):
                if inside := prune(s.body):
                    out.append((s.var, inside))
                continue
            name = s.tensor if isinstance(s, Store) else s.start.name if isinstance(s, Accumulate) else s.name
            if isinstance(s, Store) and s.when is not None and not holds(s.when, flags):
                continue
            if name in (wanted if isinstance(s, Store) else used):
                value = settle(s.value, flags)
                used.update(n.name for n in ir.walk(value) if isinstance(n, Ref))
                out.append((s, value))
        return out

    return prune(family.kernel.body)


def sweeps(body: Iterable[Any]) -> int:
    """How many loops there are."""
    return sum(1 + sweeps(s[1]) for s in body if isinstance(s[0], ir.Var))


def values(body: Iterable[Any]) -> Iterable[Node]:
    for s in body:
        yield from values(s[1]) if isinstance(s[0], ir.Var) else [s[1]]


def names(body: Iterable[Any]) -> set[str]:
    """What the statements that are left compute."""
    found: set[str] = set()
    for s in body:
        found |= names(s[1]) if isinstance(s[0], ir.Var) else set() if isinstance(s[0], Store) else {
            s[0].start.name if isinstance(s[0], Accumulate) else s[0].name}
    return found


def nests(body: Iterable[Any], most: dict[str, int], around: tuple[str, ...] = ()) -> Iterable[str]:
    """The axes of more loops in each other over one axis than a tensor has dimensions of it: a sum that is computed anew for each place."""
    for s in body:
        if isinstance(s, Loop):
            yield from [s.var.axis] if around.count(s.var.axis) >= most.get(s.var.axis, 1) else []
            yield from nests(s.body, most, (*around, s.var.axis))


def dimensions(kernel: ir.Kernel) -> dict[str, int]:
    """How often one tensor has an axis, at most."""
    return {axis: max(a.axes.count(axis) for a in (*kernel.inputs, *kernel.outputs)) for a in kernel.inputs for axis in a.axes}


# The formula is a sum of sums; the largest of a row is looked for at each place, for the diagonal of the Hessian alone.
NESTED = {"multilabel_margin_loss": {"value_and_grad", "jvp", "hvp", "hessian_diag"}, "cosine_embedding_loss": {"hessian_diag"}}


# A sum that the value alone has shares the last loop of the gradient, which the value alone has not.
ONE_MORE = {("contrastive_loss", "value")}


def has_tables(definition: Any) -> bool:
    """Is it a system of tables, whose kernels share no text?"""
    return any(loss.tables for loss in emit.forms_of(definition))


@pytest.mark.parametrize("name", [n for n, d in CATALOGUE.items() if has_tables(d)])
def test_kernels_with_tables_share_no_text(name: str) -> None:
    for group in emit.compile_definition(CATALOGUE[name]):
        alone = {k.name + c.mark + c.form.suffix: k for c in group for k in pipeline.kernels(c, False)}
        found = families(group)
        assert [f.name for f in found] == [m.name for f in found for m in f.members] and {f.name for f in found} == set(alone)
        for f in found:
            kernel, (member,) = alone[f.name], f.members
            assert f.kernel.body == kernel.body and not f.kernel.flags and not member.flags
            assert (member.signature.inputs, member.signature.params) == (kernel.inputs, kernel.params)
            assert member.signature.outputs == kernel.outputs and set(member.signature.axes) == set(kernel.axes)


@pytest.mark.parametrize("name", [n for n, d in CATALOGUE.items() if not has_tables(d)])
def test_a_member_is_no_longer_than_it_would_be_alone(name: str) -> None:
    for group in emit.compile_definition(CATALOGUE[name]):
        alone = {k.name + c.mark + c.form.suffix: k for c in group for k in pipeline.kernels(c, False)}
        found = families(group)
        assert {m.name for f in found for m in f.members} == set(alone)
        for f in found:
            assert f.name in NESTED.get(name, ()) or not list(nests(f.kernel.body, dimensions(f.kernel))), f.name
            for m in f.members:
                kernel, left = alone[m.name], alive(f, m)
                loops = sum(isinstance(s, Loop) for s in ir.statements(kernel.body))
                assert sweeps(left) <= loops + ((name, m.name) in ONE_MORE), m.name
                read = {n.tensor for v in values(left) for n in ir.walk(v) if isinstance(n, Load)}
                assert read <= {a.name for a in m.signature.inputs}, m.name
                assert m.signature.inputs == kernel.inputs and m.signature.outputs == kernel.outputs
                assert m.signature.params == kernel.params and set(m.signature.axes) == set(kernel.axes)
                kept = replace(f, kernel=refined(f.kernel, f.members))       # to keep something costs no other member anything
                assert names(alive(kept, m)) <= names(left), m.name


def test_a_family_has_one_function_for_every_variant() -> None:
    s, t = tensor("s"), tensor("t")
    squared = option("squared", default=False)
    loss = Loss(If(squared, (s - t)**2, Abs(s - t)) * exp(t)).called("either", doc="either")
    found = families(emit.compile_definition(loss)[0])
    assert [f.name for f in found] == ["value_and_grad", "jvp", "hvp", "hessian_diag"]
    assert all(f.kernel.flags == ("squared",) for f in found)
    assert {m.name for m in found[0].members} == {f"{k}__squared_{w}" for k in ("value", "value_and_grad") for w in ("yes", "no")}


def colliding() -> tuple[Loss, dict[str, Any]]:
    """Every name that the emitted code derives from another name, given to something else."""
    rng = np.random.default_rng(5)
    rows = axis("rows")
    r = rows.index()
    x, x_row, x_batch = tensor("x", rows), tensor("x_row", rows), tensor("x_batch")
    x_rows, loss_wanted = tensor("x_rows"), tensor("loss_wanted")
    everything = param("all", default=0.5)
    mass = named("others_sum", Sum(exp(x[r] * x_row[r]), r))
    total_loss_sum = named("total_loss_sum", log(mass) * x_batch)
    loss = Loss(total_loss_sum**2 + named("grad_x_wanted", x_rows * loss_wanted) * everything + total_loss_sum * mass)
    shapes = {"x": (3, 4), "x_row": (3, 4), "x_batch": 3, "x_rows": 3, "loss_wanted": 3}
    return loss.called("colliding", doc="colliding"), {name: rng.normal(size=shape) for name, shape in shapes.items()}


def pointwise() -> tuple[Loss, dict[str, Any]]:
    """The same without axes, where totals go tile by tile."""
    rng = np.random.default_rng(6)
    s, s_batch, loss_tile = tensor("s"), tensor("s_batch"), tensor("loss_tile")
    loss = Loss(named("total_loss_tile", s * s_batch)**2 + named("all", exp(loss_tile)) * s)
    return loss.called("pointwise", doc="pointwise"), {n: rng.normal(size=3) for n in ("s", "s_batch", "loss_tile")}


@pytest.mark.parametrize("make", [colliding, pointwise])
def test_names_that_look_derived_do_not_collide(make: Any, tmp_path: Path) -> None:
    loss, arrays = make()
    targets = library([loss], tmp_path, f"names_{make.__name__}")
    if COMPILER is None:
        pytest.skip("names in the emitted C are NOT TESTED: there is no C compiler")
    assert set(targets) == {"numpy", "c"}
    assert not fuzzing.disagreements(Grown(loss, arrays, {"all": 0.5} if make is colliding else {}), targets)


def test_derived_names_avoid_those_of_arguments() -> None:
    arguments = (ir.Argument("x", ("rows",)), ir.Argument("x_row"), ir.Argument("x_rows"))
    found = ir.derived_names(arguments, {a.name for a in arguments})
    assert found["x", "row"] == "x_row_2" and found["x", "stride rows"] == "x_rows_2"
    assert len(set(found.values())) == len(found) and not {a.name for a in arguments} & set(found.values())

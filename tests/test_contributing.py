"""The recipes of CONTRIBUTING.md, followed."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp
import test_rules

from losscomp import atoms, catalogue, rules
from losscomp.cli import main
from losscomp.language import Loss, tensor
from losscomp.pipeline import compile_loss, kernels
from losscomp.rewrite import Rule, rewrite

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text()


def block(heading: str, k: int = 0) -> str:
    """A piece of code under a heading."""
    return re.findall(r"```python\n(.*?)```", TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0], re.DOTALL)[k]


def test_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is sound, short, and keeps its digits where the formula as written has none."""
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "welsch_loss.py"
    path.write_text(block("A loss"))
    assert main(["check", str(path)]) == 0 and "1 loss sound" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) <= 40
    loss = catalogue.load_file(path)[0]
    assert isinstance(loss, Loss)
    found = loss.compile()(np.array([1e-9, 3.0]), np.zeros(2), delta=2.0, reduction="none")
    truth = [float(2 * -mpmath.expm1(-(mpmath.mpf(e) / 2) ** 2)) for e in (1e-9, 3.0)]
    np.testing.assert_allclose(found, truth, rtol=1e-15)


def taken(text: str, **more: Any) -> Rule:
    rule = eval(text, {**vars(rules), **more})
    assert isinstance(rule, Rule)
    return rule


def test_a_rule() -> None:
    """It is proved and agrees at points; with a slip of the pen it does not; and it fires beside those that are there."""
    rule = taken(block("A rule"))
    assert rule.name not in {r.name for r in (*rules.SMOOTHING, *rules.STABILISING)}
    left, right, symbols = test_rules.sides(rule)
    assert test_rules.proved(left, right)
    test_rules.test_rule_at_random_points(rule)
    x, = symbols.values()
    slip = x / (1 + x)
    assert not test_rules.proved(left, slip)
    truth = test_rules.ball(left, {x: 0.5})
    assert truth is not None and not test_rules.agree(truth, test_rules.ball(slip, {x: 0.5}))
    p = tensor("p", positive=True)
    assert rule.name in [step.rule for step in rewrite(3 * (1 / (1 + p) - 1), (*rules.STABILISING, rule))[1]]
    assert dataclasses.replace(rule, unsound="an example").unsound


def test_an_atom(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes into a loss by its rule, and value and derivatives have all digits on a target that knows nothing of it."""
    atom = eval(block("An atom"), vars(atoms))
    cosm1: Any = atoms._define(atom)
    monkeypatch.setitem(atoms.ATOMS, atom.name, atom)
    monkeypatch.setitem(atoms.FUNCTIONS, atom.name, cosm1)
    angle = tensor("angle")
    expr, trace = rewrite(sp.cos(angle) - 1, (taken(block("An atom", 1), cosm1=cosm1),))
    assert expr == cosm1(angle) and len(trace) == 1
    at = np.array([1e-9, 0.5, -3.0])
    value, grads = Loss(cosm1(angle), doc="The cosine less 1.").compile().value_and_grad(at, reduction="none")
    np.testing.assert_allclose(value, [float(mpmath.cos(mpmath.mpf(x)) - 1) if abs(x) > 1e-3 else -x * x / 2 for x in at], rtol=2e-16 * 4)
    np.testing.assert_allclose(grads.angle, -np.sin(at), rtol=1e-15)


@pytest.mark.parametrize("name", ["log_cosh_loss", "huber_loss", "charbonnier_loss"])
def test_a_target(name: str, targets: dict[str, Any]) -> None:
    """Plain Python computes what NumPy does."""
    made: dict[str, Any] = {}
    exec(block("A target"), made)
    definition = catalogue.load(catalogue.builtin_definitions())[name]
    compiled, = compile_loss(definition)
    kernel = next(k for k in kernels(compiled, False) if k.name == "value_and_grad")
    space: dict[str, Any] = {"math": math}
    exec(made["function"](kernel), space)
    defaults = {p.name: float(p.record.default) for p in compiled.form.params}
    for e in (-2.5, -1e-5, 0.0, 0.75, 40.0):
        mine = space["value_and_grad"](input=e, target=0.0, weight=1.0, scale=1.0, **defaults)
        value, grads = getattr(targets["numpy"], name).value_and_grad(np.array([e]), np.zeros(1), reduction="none")
        assert (mine["loss"], mine["grad_input"]) == pytest.approx((value[0], grads.input[0]), rel=1e-14, abs=0)

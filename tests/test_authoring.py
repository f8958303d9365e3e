"""What authors of definitions work with: check, build --watch, new, and a loss in a notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from losscomp import catalogue, compiler, emit, watch
from losscomp.check import check
from losscomp.cli import main
from losscomp.errors import LosscompError
from losscomp.language import Abs, LogSumExp, Loss, Piecewise, axis, exp, index, log, param, tensor
from losscomp.latex import latex_of
from losscomp.live import MEMORY

ROOT = Path(__file__).resolve().parent.parent
Captured = pytest.CaptureFixture[str]
HEAD = "from losscomp.language import *\nimport sympy as sp\n\n\nx = tensor('x')\n"


def run_check(path: Path, capsys: Captured, *more: str) -> tuple[int, str, str]:
    """The exit code of losscomp check, what it printed, what it complained about."""
    code = main(["check", str(path), *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# losscomp check

@pytest.mark.parametrize(("text", "line", "words", "repair"), [
    ("y = x *\nmine = Loss(y)\n", 6, "this is not Python", "Mend: y = x *"),
    ("y = x + z\nmine = Loss(y)\n", 6, "name 'z' is not defined", "mend that line"),
    ("y = Max(x, 0)\nmine = Loss(y)\n", 6, "has a kink", "tie=1"),
    ("z = sp.Symbol('z') * x\ny = z + 1\nmine = Loss(y**2)\n", 6, "the symbol 'z' is no declared input", "Declare it: z = tensor"),
    ("y = 2 * x\nz = sp.Max(x, y)\nmine = Loss(y + z)\n", 7, "SymPy's Max", r"Max\(a, b, tie=...\)"),
    ("c = axis('c')\ni = c.index()\nr = tensor('r', c)\nmine = Loss(\n    r[i] * x)\n", 9, "depends on an index of the axis 'c'", "Sum"),
    ("d = param('d', default=1.0)\nmine = Loss(x**2)\n", 6, "'d' is declared and used by no loss", "delete the line"),
    ("mine = Loss(x**2, reductions=('most',))\n", 6, "the reduction 'most' is not known", "Known: none, mean"),
    ("mine = x**2\n", None, "no loss in this file", "Name a formula"),
])
def test_errors_have_a_file_a_line_and_a_repair(text: str, line: int | None, words: str, repair: str, tmp_path: Path,
                                                capsys: Captured) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + text)
    code, printed, complaint = run_check(path, capsys)
    assert code == 1 and "1 not, nothing built" in printed
    assert f"{path}:{line}: " in complaint if line else f"{path}: " in complaint
    assert re.search(f"{re.escape(words)}.*\n  .*{repair}", complaint), complaint


def test_a_sound_definition_is_shown_and_nothing_is_written(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "defs").mkdir()
    (tmp_path / "defs" / "mine.py").write_text(HEAD + "p = param('p', default=2.0, special=(1, 2))\nmine = Loss(Abs(x)**p)\n")
    (tmp_path / "defs" / "other.py").write_text(HEAD + "other = Loss(y)\n")
    code, printed, complaint = run_check(tmp_path / "defs", capsys)
    assert code == 1 and "mine: 3 variants, 15 kernels" in printed and "loss = |x|**p" in printed and "gradient by x" in printed
    assert "1 loss sound, 1 not" in printed and "other.py:6: definition: NameError" in complaint
    assert sorted(p.name for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == ["defs", "mine.py", "other.py"]


def test_a_check_takes_less_than_two_seconds_of_work() -> None:
    """The definition of the catalogue with the most variants, in a process of its own; of a machine's time, not of its waiting."""
    from resource import RUSAGE_CHILDREN, getrusage

    spent = lambda: sum(getrusage(RUSAGE_CHILDREN)[:2])
    most = "embedding/triplet_margin_loss.py"
    before = spent()
    done = subprocess.run([sys.executable, "-m", "losscomp", "check", str(ROOT / "definitions" / most)], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0 and "10 variants, of which" in done.stdout
    assert spent() - before < 4           # under 2 on an idle machine; a busy one computes slower too


# losscomp build --watch

class Editor:
    """Stands in for the waiting of a watch: at each look it does the next thing that an author might do."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.steps = list(steps)

    def __call__(self, seconds: float) -> None:
        if not self.steps:
            raise KeyboardInterrupt
        self.steps.pop(0)()


def test_watch_builds_after_each_save_and_survives_errors(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path / "cache"))
    path, out = tmp_path / "defs" / "mine.py", tmp_path / "lib"
    path.parent.mkdir()
    path.write_text(HEAD + "mine = Loss(x**2)\n")
    save = lambda text: lambda: path.write_text(HEAD + text)
    kernel = lambda: (out / "src/lib/numpy/kernels/mine.py").read_text()
    seen: list[str] = []
    look = lambda: seen.append(kernel())
    editor = Editor(look, save("mine = Loss(x**3 +)\n"), look, lambda: None, save("mine = Loss(exp(x))\n"), look, path.unlink,
                    save("mine = Loss(exp(x))\n"))
    monkeypatch.setattr(watch.watch, "__defaults__", (editor,))
    assert main(["build", str(path.parent), "--out", str(out), "--name", "lib", "--targets", "numpy", "--watch"]) == 0
    captured = capsys.readouterr()
    assert seen[0] == seen[1] != seen[2] and "exp" in seen[2]
    assert captured.out.count("lib in ") == 3 and "up to date" in captured.out
    assert "mine.py:6: definition: this is not Python" in captured.err and "there is no definition" in captured.err
    assert captured.err.rstrip().endswith("no longer watching")


def test_watch_sees_files_that_formulas_are_taken_from(tmp_path: Path) -> None:
    (tmp_path / "_shared.py").write_text(HEAD + "y = x**2\n")
    (tmp_path / "mine.py").write_text(HEAD + "y = base('_shared.py').y\nmine = Loss(y)\n")
    assert {Path(p).name for p in watch.stamps(tmp_path / "mine.py")} == {"mine.py", "_shared.py"}


# losscomp new

def test_new_asks_nothing_and_what_it_writes_is_sound_and_builds(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("it asks"))
    assert main(["new", "my_loss", "--folder", str(tmp_path)]) == 0
    path = tmp_path / "my_loss.py"
    assert f"losscomp check {path}" in capsys.readouterr().out
    code, printed, _ = run_check(path, capsys)
    assert code == 0 and "my_loss: 1 variant" in printed
    (loss,) = catalogue.load_file(path)
    assert loss.compile()(np.array([3.0]), np.array([1.0]), width=2.0) == 0.5


# In a notebook

def in_notebook() -> Loss:
    """The Huber loss, written where it is used."""
    x, y, delta = tensor("x"), tensor("y", fixed=True), param("delta", default=1.0, positive=True)
    error = x - y
    return Loss(Piecewise((error**2 / 2, Abs(error) < delta), (delta * (Abs(error) - delta / 2), True)))


@pytest.mark.parametrize("target", ["numpy", pytest.param("c", marks=pytest.mark.skipif(
    bool(compiler.missing()), reason=f"NOT CHECKED: compile(target='c'), {compiler.missing()}"))])
def test_a_loss_is_compiled_at_once(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CFLAGS", "-O0")                                  # quick to compile
    monkeypatch.chdir(tmp_path)
    loss = in_notebook()
    huber = loss.compile(target, name="huber")
    a, b = np.array([0.5, 3.0]), np.zeros(2)
    value, grads = huber.value_and_grad(a, b)
    assert value == 1.3125 and grads.x.tolist() == [0.25, 0.5] and repr(huber) == f"<huber on {target}>"
    np.testing.assert_array_equal(huber.hvp(a, b, np.ones(2), reduction="sum").x, [1, 0])
    other = Loss(tensor("x") ** 2).compile(target)                       # beside the first
    assert (other(a), huber(a, b), huber(a, b, delta=0.5, reduction="sum")) == (4.625, 1.3125, 0.125 + 0.5 * 2.75)
    known = len(MEMORY.packages)
    assert type(in_notebook().compile(target, name="huber")) is type(huber) and len(MEMORY.packages) == known
    with pytest.raises(ValueError, match=r"huber: y \(3,\) does not broadcast with x \(2,\)"):
        huber(a, np.zeros(3))
    written = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert written == ({"cache"} if target == "c" else set())


def test_what_cannot_be_compiled_is_said() -> None:
    with pytest.raises(LosscompError, match="cannot be compiled at once for 'torch'"):
        in_notebook().compile("torch")
    with pytest.raises(LosscompError, match="name 'for' is no plain identifier"):
        in_notebook().compile(name="for")


def test_a_loss_is_shown_as_its_formula() -> None:
    assert in_notebook()._repr_latex_() == (
        r"$\displaystyle \begin{aligned} \mathrm{loss} &= \begin{cases} \frac{\left(x - y\right)^{2}}{2} & "
        r"\text{if } \left|x - y\right| < \delta \\ \delta \, \left(- \frac{\delta}{2} + \left|x - y\right|\right) & "
        r"\text{otherwise} \end{cases} \end{aligned}$")
    classes = axis("classes")
    c, scores, label = classes.index(), tensor("scores", classes), index("label", into=classes)
    rows = Loss(LogSumExp(scores[c], c) - scores[label])
    assert rows._repr_latex_() == (r"$\displaystyle \begin{aligned} \mathrm{loss} &= - {\mathrm{scores}}_{\mathrm{label}} + "
                                   r"\operatorname{logsumexp}_{c} \left({\mathrm{scores}}_{c}\right) \end{aligned}$")
    assert Loss(scores[c])._repr_latex_() is None                        # not sound: compile says why
    assert "log" in str(Loss(log(1 + exp(tensor("x"))))._repr_latex_())


def test_every_definition_has_a_formula_in_latex() -> None:
    for name, definition in catalogue.load(catalogue.builtin_definitions()).items():
        for form in emit.forms_of(definition):
            text = latex_of(check(form)[0])
            plain = re.sub(r"\\[{}]", "", text)
            assert plain.count("{") == plain.count("}") and text.count(r"\left") == text.count(r"\right"), name
            assert text.count(r"\begin{cases}") == text.count(r"\end{cases}"), name
            assert not re.search(r"Infinity|Tensor|Record|Where|Reduce|#", text), name

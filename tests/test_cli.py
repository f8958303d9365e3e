"""The command line: what each command says, its exit codes, and its errors."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import losscomp
from losscomp import show
from losscomp.cli import SHOWN, STAGES, main
from losscomp.pipeline import STAGES as COMPILER_STAGES
from losscomp.scaffold import USED

ROOT = Path(__file__).resolve().parent.parent
LOGISTIC = '''"""Logistic loss of a score."""

from losscomp.language import Loss, exp, log, param, tensor

score = tensor("score")
sharpness = param("sharpness", default=1.0, positive=True, special=(1,))
logistic = Loss(log(1 + exp(sharpness * score)), like="peer.logistic")
'''


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LOSSCOMP_CACHE", str(folder))
        patch.setenv("LOSSCOMP_QUICK", "0")                                 # it takes long to compile, and has tests of its own
        yield folder


@pytest.fixture
def defs(tmp_path: Path) -> Path:
    """A folder with one loss that every stage has something to do with."""
    (tmp_path / "defs").mkdir()
    (tmp_path / "defs" / "logistic.py").write_text(LOGISTIC)
    return tmp_path / "defs"


Captured = pytest.CaptureFixture[str]


def said(capsys: Captured, *arguments: str | Path, code: int = 0) -> str:
    """What a command prints, after a look at its exit code; of a failing one, what it complains about."""
    assert main([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=False, text=True, capture_output=True, cwd=ROOT, timeout=60)


# Starting

def test_help_and_errors_start_quickly() -> None:
    code = ("import sys; from losscomp.cli import main\ntry: main({!r})\nexcept SystemExit as end: print(end.code)\n"
            "print(sorted({{'sympy', 'torch', 'numpy', 'jinja2', 'cffi'}} & set(sys.modules)))")
    for arguments, status in ((["--help"], "0"), (["build", "--help"], "0"), (["--version"], "0"), (["bild"], "2"), ([], "2")):
        done = python("-c", code.format(arguments))
        assert done.stdout.endswith(f"{status}\n[]\n"), done


def test_version_and_module() -> None:
    done = python("-m", "losscomp", "--version")
    assert done.stdout == f"losscomp {losscomp.__version__}\n"


@pytest.mark.parametrize("arguments", [
    ["build", "--targets", "cuda9"], ["build", "--jobs", "0"], ["build", "--jobs", "many"], ["show"],
    ["show", "x", "--stage", "none"], ["new"], ["nothing"],
])
def test_misuse_is_2(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: losscomp" in capsys.readouterr().err


def test_words_agree_with_what_they_name() -> None:
    assert STAGES == show.STAGES == ("definition", *COMPILER_STAGES)
    assert set(SHOWN) == set(show.ARRAYS) == set(show.EMITTED) == set(show.FUNCTIONS)
    assert set(show.PRINTERS) == set(STAGES) - {"definition", "emit"}


# build

def test_build_says_what_it_did(defs: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "lib"
    build = ["build", defs, "--out", out, "--name", "mylib", "--no-compile"]
    assert f"mylib in {out}: 1 loss, 1 derived, " in said(capsys, *build)
    assert f"mylib in {out}: 1 loss, up to date" in said(capsys, *build)
    assert said(capsys, *build, "--check") == f"{out} is up to date\n"
    kernel = out / "src/mylib/numpy/kernels/logistic.py"
    kernel.write_text("mine")
    assert main([str(a) for a in (*build, "--check")]) == 1
    assert f"edited    {kernel}\n{out}: 1 file to renew; run losscomp build" in capsys.readouterr().out
    assert main([str(a) for a in (*build, "-v")]) == 0
    assert "renewed what had been edited by hand: src/mylib/numpy/kernels/logistic.py" in capsys.readouterr().err


def test_build_shows_progress_when_asked(defs: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path / "fresh"))
    assert main(["build", str(defs), "--out", str(tmp_path / "a"), "--no-compile", "-v"]) == 0
    assert "  derived logistic (" in capsys.readouterr().err
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path / "fresher"))
    assert main(["build", str(defs), "--out", str(tmp_path / "b"), "--no-compile"]) == 0
    assert capsys.readouterr().err == ""


def test_build_says_what_is_missing(defs: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    assert main(["build", str(defs), "--out", str(tmp_path / "lib")]) == 0
    error = capsys.readouterr().err
    assert "losslib.c is not compiled, its sources are emitted: there is no C compiler. Get one:" in error


def test_errors_are_words_and_tracebacks_are_for_who_asks(defs: Path, tmp_path: Path, capsys: Captured) -> None:
    (defs / "bad.py").write_text("from losscomp.language import Loss, tensor\nbad = Loss(tensor('x') + undeclared)\n")
    arguments = ["build", str(defs), "--out", str(tmp_path / "lib"), "--no-compile"]
    error = said(capsys, *arguments, code=1)
    assert error.startswith(f"losscomp: {defs / 'bad.py'}:2: definition: NameError") and "Traceback" not in error
    with pytest.raises(losscomp.errors.LosscompError):
        main([*arguments, "--traceback"])
    assert "losscomp: build: the name 'class' is a keyword of Python" in said(capsys, "build", defs, "--name", "class", code=1)
    assert "no file or folder" in said(capsys, "build", tmp_path / "nowhere", code=1)


def test_defects_and_interruptions(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(error: BaseException) -> None:
        raise error

    monkeypatch.setattr("losscomp.doctor.examine", lambda: raise_it(ZeroDivisionError("oh")))
    error = said(capsys, "doctor", code=1)
    assert "a defect: ZeroDivisionError: oh (test_cli.py:" in error and "--traceback" in error
    monkeypatch.setattr("losscomp.doctor.examine", lambda: raise_it(KeyboardInterrupt()))
    assert said(capsys, "doctor", code=130) == "losscomp: interrupted\n"


def test_a_reader_who_leaves_is_no_error() -> None:
    done = subprocess.run(f"{sys.executable} -m losscomp list | head -c 1", shell=True, check=False, capture_output=True,
                          text=True, cwd=ROOT, timeout=60)
    assert (len(done.stdout), done.stderr) == (1, "")


# list, show

def test_list_has_name_summary_and_peer(defs: Path, capsys: Captured) -> None:
    assert said(capsys, "list", defs) == "logistic  pointwise  sharpness  numpy c torch cuda  Logistic loss of a score.  peer.logistic\n"


def test_list_has_the_whole_catalogue(capsys: Captured) -> None:
    names = [line.split()[0] for line in said(capsys, "list").splitlines()]
    assert "huber_loss" in names and names == sorted(names)


def test_an_unknown_loss_brings_those_that_are_near(defs: Path, capsys: Captured) -> None:
    error = said(capsys, "show", "logisitc", "--defs", defs, code=1)
    assert error == "losscomp: there is no loss 'logisitc'\n  Did you mean logistic?\n"
    assert "`losscomp list` shows all" in said(capsys, "show", "qqq", "--defs", defs, code=1)


def test_show_has_every_stage(defs: Path, capsys: Captured) -> None:
    text = said(capsys, "show", "logistic", "--defs", defs)
    parts = dict(part.split(" =", 1) for part in text.split("\n== ")[1:])
    assert tuple(parts) == STAGES
    assert "logistic = Loss(log(1 + exp(sharpness * score))" in parts["definition"]
    assert "* sharpness_1" in parts["check"] and "sharpness_general" in parts["check"]
    assert "softplus  (removes: overflow, cancellation)\n       log(exp(score) + 1)\n    -> softplus(score)" in parts["smooth"]
    assert "  grad_score = " in parts["differentiate"] and "sigmoid(score)" in parts["differentiate"]
    assert "hessian_diag" in parts["differentiate"]
    assert "as derived: loss, total_loss, grad_score" in parts["stabilise"]
    assert "grad_score[n] = " in parts["lower"] and "total_loss += " in parts["lower"]
    assert "    for n in batch:\n" in parts["schedule"]
    assert "NAME(value_and_grad)(" in parts["emit"]


def test_show_narrows_down(defs: Path, capsys: Captured) -> None:
    both = ["show", "logistic", "--defs", str(defs)]
    text = said(capsys, *both, "--stage", "emit", "--target", "numpy", "--kernel", "hvp", "--variant", "general")
    assert "def hvp__sharpness_general(" in text and text.count("def ") == 1
    assert said(capsys, *both, "--stage", "emit", "--target", "numpy").count("def ") > 8
    text = said(capsys, *both, "--stage", "schedule", "--variant", "all")
    assert text.count("-- sharpness_") == 2 and text.count("jvp(") == 2
    assert "hvp:" in said(capsys, *both, "--stage", "lower", "--kernel", "hvp")
    assert "no variant has 'none'" in said(capsys, *both, "--variant", "none", code=1)
    assert "no kernel 'nothing" in said(capsys, *both, "--stage", "emit", "--kernel", "nothing", code=1)


# new

def test_new_writes_a_definition_that_builds(tmp_path: Path, capsys: Captured) -> None:
    text = said(capsys, "new", "my_loss", "--folder", tmp_path / "mine")
    path = tmp_path / "mine" / "my_loss.py"
    assert text.startswith(f"{path}\n") and f"losscomp build {path}" in text
    before = path.read_text()
    assert "1 loss, 1 derived" in said(capsys, "build", path, "--out", tmp_path / "lib", "--no-compile")
    assert "is there already" in said(capsys, "new", "my_loss", "--folder", tmp_path / "mine", code=1)
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["while", "exp", "my-loss", "a__b", "../x", "", *USED])
def test_new_refuses_names_that_would_not_build(name: str, tmp_path: Path, capsys: Captured) -> None:
    assert "cannot be named" in said(capsys, "new", name, "--folder", tmp_path, code=1)
    assert list(tmp_path.iterdir()) == []


# doctor, verify

def test_doctor_finds_and_advises(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "yes  sympy " in said(capsys, "doctor")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    lines = {line[5:17].strip(): line for line in said(capsys, "doctor").splitlines()}
    assert lines["cmake"] == "no   cmake         missing; enables the library in C and C++ projects. Get it: pip install cmake"
    assert "the c target. Get it: " in lines["C compiler"]
    assert lines["GPU"].startswith("no ") and "running the CUDA kernels" in lines["GPU"]


def test_doctor_fails_without_what_it_needs(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from losscomp.doctor import Finding

    monkeypatch.setattr("losscomp.doctor.examine", lambda: [Finding("sympy", "", "deriving losses", "pip install sympy", True)])
    assert main(["doctor"]) == 1
    assert "Get it: pip install sympy" in capsys.readouterr().out


def test_verify_hands_its_arguments_on(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(args: argparse.Namespace) -> int:
        print(json.dumps([args.losses, str(args.json), str(args.lib), args.quick]))
        return 1

    monkeypatch.setattr("losscomp.verify.main", listen)
    assert main(["verify", "a", "b", "--json", "x.json", "--quick"]) == 1
    assert json.loads(capsys.readouterr().out) == [["a", "b"], "x.json", "generated", True]

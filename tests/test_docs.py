"""What the documents say is so: the README's example, the page of differences, the map of the files."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from losscomp import catalogue
from losscomp.emit import emit_loss, forms_of
from losscomp.hierarchy import Hierarchy

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_of_the_readme_gives_what_it_shows(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    examples = "\n".join(re.findall(r"```python\n(>>>.*?)```", README, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, "README.md", "README.md", 0)
    assert len(test.examples) >= 5
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert results.failed == 0


def test_the_training_of_the_readme_gives_what_it_shows() -> None:
    for module in ("torch", "sklearn"):
        pytest.importorskip(module, reason=f"the README's training run is NOT TESTED: {module} is not installed")
    script = re.search(r"```python\n(import sys.*?)```", README, re.DOTALL)
    assert script
    shown = re.search(r"# ([0-9.]+), twice", script.group(1))
    done = subprocess.run([sys.executable, "-c", script.group(1)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert shown and done.stdout.split() == [shown.group(1)] * 2, done.stderr


def test_the_definition_in_the_readme_is_the_one_in_the_catalogue() -> None:
    shown = re.search(r"without its docstring:\n\n```python\n(.*?)```", README, re.DOTALL)
    assert shown and shown.group(1) in (ROOT / "definitions/regression/huber_loss.py").read_text()


def test_the_code_in_the_readme_is_emitted() -> None:
    shown = re.search(r"```c\n(.*?)```", README, re.DOTALL)
    code = (ROOT / "generated/src/losslib/csrc/huber_loss.c").read_text()
    assert shown
    for line in shown.group(1).splitlines():
        assert line.strip().removesuffix("...").strip() in code, line


def test_every_note_of_a_definition_is_among_the_differences() -> None:
    page = (ROOT / "docs/differences-from-pytorch.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n\n((?:- .*\n)+)", page + "\n", re.MULTILINE))
    notes = {}
    for name, definition in catalogue.load_all(catalogue.builtin_definitions()).items():
        if isinstance(definition, Hierarchy):
            notes[name] = "".join(f"- {note}\n" for note in definition.notes)
            continue
        if forms_of(definition)[0].dialect_of or not (definition.like or forms_of(definition)[0].like).startswith("torch"):
            continue                                                     # it is not held against PyTorch
        found = list(definition.notes) or [note for form in forms_of(definition) for note in form.notes]
        if found:
            notes[name] = "".join(f"- {note}\n" for note in found)
    assert sections == notes


def test_the_map_names_every_file() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    files = [p.name for p in (ROOT / "losscomp").glob("*.py") if not p.name.startswith("__")]
    assert [name for name in files if f"`{name}`" not in text] == []


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_examples_of_parts_and_processes_run(tmp_path: Path) -> None:
    """Those in one process one after the other; the one of several prints one number three times, on each process."""
    *others, script = examples("distributed.md")
    runs = [e for e in others if "model(" not in e and "sharded(" not in e]
    assert len(runs) == 2 and script.startswith("# example.py")
    path = tmp_path / "example.py"
    path.write_text("\n".join(runs) + "\n" + "import torch\n" + script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "generated/src"), "PYTHONUNBUFFERED": ""})  # a line in one piece
    lines = [line.split() for line in done.stdout.splitlines()]
    assert sorted(line[0] for line in lines) == ["0", "1"], done.stderr
    for _, *numbers in lines:
        assert [float(n) for n in numbers] == pytest.approx([float(numbers[0])] * 3, rel=1e-6)


def test_the_example_of_dialects_runs() -> None:
    done = subprocess.run([sys.executable, "-c", examples("dialects.md")[0]], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "generated/src")})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("k", [0, 1])
def test_the_examples_of_boosting_run(k: int) -> None:
    text = examples("boosting.md")[k]
    package = re.search(r"^import (\w+)", text, re.MULTILINE)
    assert package
    pytest.importorskip(package[1], reason=f"NOT CHECKED: the example of docs/boosting.md, {package[1]} is not installed")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "generated/src")})
    assert done.returncode == 0, done.stderr
    if "the same number" in text:
        *_, first, second = done.stdout.split()
        assert float(first) == pytest.approx(float(second), rel=1e-6)


def test_the_examples_of_optimisers_run() -> None:
    done = subprocess.run([sys.executable, "-c", "\n".join(examples("optimize.md"))], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "generated/src")})
    assert done.returncode == 0, done.stderr
    squares, huber, curve = done.stdout.splitlines()
    assert float(squares.split()[1]) > 1.5 and float(huber.split()[1]) < 0.1
    assert [float(x) for x in curve.strip("[]").split()] == pytest.approx([2, 1.5], rel=0.02)


def test_the_tutorial_runs(tmp_path: Path) -> None:
    """Its prompts are doctests, a file is written where its first line says, commands print what is shown but for times."""
    for module in ("sklearn", "xgboost"):
        pytest.importorskip(module, reason=f"NOT CHECKED: docs/tutorial.md, {module} is not installed")
    blocks = re.findall(r"```(python|console)\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CFLAGS": "-O0"}
    run = lambda *words: subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, cwd=tmp_path,
                                        env=environment)
    prompts: list[str] = []
    for kind, text in [*blocks, ("console", "")]:
        if text.startswith("# mydefs/"):
            path = tmp_path / text.splitlines()[0].removeprefix("# ")
            path.parent.mkdir()
            path.write_text(text.partition("\n")[2])
        elif kind == "python":
            assert text.startswith(">>>")
            prompts.append(text)
        elif not text or "build" in text:                                # prompts before and after the library is there
            (tmp_path / "prompts.txt").write_text("\n".join(prompts))
            done = run("-m", "doctest", "-o", "NORMALIZE_WHITESPACE", "prompts.txt")
            assert len(prompts) >= 3 and done.returncode == 0 and not done.stdout, done.stdout + done.stderr
            prompts = []
        if kind == "console" and text:
            command, *shown = text.splitlines()
            done = run("-m", *command.removeprefix("$ ").split())
            pattern = r"\n".join(".*" if line == "..." else re.escape(line).replace(r"\ \.\.\.", ".*") for line in shown)
            pattern = re.sub(r"\\\(\d+\\\.\d\\ s\\\)", r"\\(\\d+\\.\\d s\\)", pattern)
            pattern = re.sub(r"\d+\\ (derived|compiled|written)", r"\\d+\\ \1", pattern)     # the cache may have some
            assert done.returncode == 0 and re.search(pattern, done.stdout, re.DOTALL), (pattern, done.stdout, done.stderr)


def test_the_definition_of_a_hierarchy_is_one(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(examples("hierarchies.md")[0])
    found, = catalogue.load_file(path)
    assert isinstance(found, Hierarchy) and found.name == "two_levels"
    text = emit_loss(found, "mine", path.name).files["src/mine/compositions/two_levels.py"]
    assert "Layers(f\"second.{group}\", (features, int(features // 2)))" in text

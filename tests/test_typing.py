"""What an editor and a type checker know of an emitted library: every loss with its parameters, and no name that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from losscomp import catalogue

SOURCES = Path(__file__).resolve().parents[1] / "generated" / "src"
HEAD = """import numpy as np
import losslib.c as C
import losslib.numpy as L
import losslib.torch as T
import losslib.torch.keras as K
x = np.zeros(3)
"""
WRONG = {
    'L.mse_loss(x, x, reductoin="mean")': 'did you mean "reduction"?',
    'C.huber_loss.grad(x, x, delta="1")': 'Argument "delta" to "grad" of "HuberLossFunction" has incompatible type "str"',
    "T.CrossEntropyLoss(label_smooting=0.1)": 'did you mean "label_smoothing"?',
    "T.mse_loss()": 'Missing positional arguments "input", "target"',
    "L.no_such_loss": 'has no attribute "no_such_loss"',
    "T.NoSuchLoss": 'has no attribute "NoSuchLoss"',
    "K.no_such_loss": 'has no attribute "no_such_loss"',
}


def said(lines: list[str], folder: Path) -> dict[int, str]:
    """What mypy says of some lines behind the head, by their number from 0."""
    (folder / "used.py").write_text(HEAD + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(folder / "cache"), "used.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(SOURCES)})
    found: dict[int, str] = {}
    for number, words in re.findall(r"^used\.py:(\d+): (?:error|note): (.*)$", done.stdout, re.MULTILINE):
        found.setdefault(int(number) - 1 - HEAD.count("\n"), words)
    assert found, done.stdout + done.stderr
    return found


def test_what_a_type_checker_knows(tmp_path: Path) -> None:
    """Each loss on each target has a type of its own, and mistakes in names and arguments are told."""
    losses = list(catalogue.load_all(catalogue.builtin_definitions()))
    names = [f"{target}.{loss}" for target in "LCT" for loss in losses] + ["T.CrossEntropyLoss", "K.hinge"]
    asked = [f"reveal_type({name})" for name in names]
    answers = said([*asked, *WRONG], tmp_path)
    types = [answers[k] for k in range(len(asked))]
    assert all(re.fullmatch(r'Revealed type is "losslib\.[\w.]+Function"', words) for words in types[:-2])
    assert len(set(types[:2 * len(losses)])) == len(losses) and len(set(types[2 * len(losses):-2])) == len(losses)
    assert "label_smoothing: float =" in types[-2] and "KerasHingeFunction" in types[-1]
    for k, (line, words) in enumerate(WRONG.items(), len(asked)):
        assert words in answers.get(k, "nothing"), f"{line}: {answers.get(k)}"

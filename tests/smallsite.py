"""Pages of a few small losses, in no library: what tests of `losscomp docs` look at."""

from __future__ import annotations

from pathlib import Path

from losscomp.cli import main

DEFINITIONS = {
    "bent.py": '''"""A bent line, with a `knee` (peer.bent).

See peer.functions.with.a.name.that.is_longer_than_a_telephone_is_wide.

    as it is: written
"""

from losscomp.language import Abs, Loss, Piecewise, log, exp, param, tensor

score = tensor("score")
label = tensor("label", fixed=True)
knee = param("knee", default=1.0, positive=True)
error = score - label
bent = Loss(Piecewise((error**2 / 2, Abs(error) < knee), (knee * (Abs(error) - knee / 2), True)), like="peer.bent",
            notes=("A <note> & more.",))
smooth_bent = Loss(log(1 + exp(knee * error)) / knee, doc="A smooth one.")
''',
    "share.py": '''"""Minus the logarithm of a share."""

from losscomp.language import Loss, Sum, axis, exp, index, log, named, option, If, tensor

classes = axis("classes", position=1)
logits = tensor("logits", classes)
label = index("label", into=classes)
halved = option("halved", default=False)
c = classes.index()
share = Loss(-log(exp(logits[label]) / Sum(exp(logits[c]), c)) / If(halved, 2, 1))
''',
    "walk.py": '''"""The largest sum of a run, softly."""

from losscomp.language import LogAddExp, Loss, axis, length, state, tensor

time = axis("time")
steps = tensor("steps", time)
runs = length("runs", of=time)
t = axis("visited", extent=runs).index()
walked = state("walked", t, outside=0)
walked[t] = LogAddExp(0, walked[t - 1] + steps[t])
walk = Loss(walked[runs - 1], tables=(walked,))
''',
}


def make_site(folder: Path) -> Path:
    """Write the definitions to a folder, and the pages beside it."""
    folder.mkdir()
    for name, text in DEFINITIONS.items():
        (folder / name).write_text(text)
    out = folder.parent / "site"
    assert main(["docs", str(folder), "--out", str(out), "--lib", str(folder / "none"), "--jobs", "1"]) == 0
    return out

"""`losscomp new`: a definition that builds, to start from."""

from __future__ import annotations

from pathlib import Path

from .errors import BuildError
from .schedule import safe_name

TEXT = '''"""{title}: quadratic near the target, scaled. Say here what it measures, and where it comes from."""

from losscomp.language import Loss, param, tensor

input = tensor("input")                                     # one number a sample; the batch is implicit
target = tensor("target", fixed=True)                       # no gradient unless the caller asks for one
scale = param("width", default=1.0, positive=True)          # a number that the caller may choose

error = (input - target) / scale
{name} = Loss(error**2 / 2)
'''
USED = ("input", "target", "scale", "error", "width", "Loss", "param", "tensor")


def new(name: str, folder: Path) -> Path:
    """Write the definition file of a new loss; nothing that exists is overwritten. Raises BuildError."""
    if not safe_name(name) or name in USED:
        why = "the new file uses that name itself" if name in USED else "no plain identifier, or a word of a target"
        raise BuildError(f"a loss cannot be named {name!r}: {why}", repair="Choose a name such as my_loss.")
    path = folder / f"{name}.py"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as file:
            file.write(TEXT.format(name=name, title=name.replace("_", " ").capitalize()))
    except FileExistsError:
        raise BuildError(f"{path} is there already", repair="Choose another name, or edit that file.") from None
    return path

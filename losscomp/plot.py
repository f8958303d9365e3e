"""`losscomp plot`: a loss and its derivatives along one number, as a file or as text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import braille, catalogue, svg
from .curves import Family, families, family
from .errors import BuildError, LosscompError
from .language import Definition
from .pages import Library, library_at, library_for

INCHES = (5.0, 3.5)                              # of one panel of a PNG


def wanted(definition: Definition, library: Library, moving: str | None, params: Sequence[tuple[str, tuple[float, ...]]],
           ends: tuple[float, float] | None) -> Family:
    """The curves that are asked for; where nobody says what they differ in, by what is worth it. Raises LosscompError."""
    several = [name for name, values in params if len(values) > 1]
    if len(several) > 1:
        raise LosscompError(f"{' and '.join(several)} have several values each", repair="Give several values to one of them.")
    given = {name: values[0] for name, values in params if len(values) == 1}
    module = library.modules["numpy"]
    if several:
        by = several[0]
        return family(definition, module, moving, by, dict(params)[by], ends, given)
    return family(definition, module, moving, ends=ends, given=given) if given else families(definition, module, 1, moving, ends)[0]


def save(found: Family, whats: Sequence[str], path: Path) -> None:
    """Write a file of the kind that its name ends with. Raises BuildError."""
    kind = path.suffix.lower()
    if kind not in (".svg", ".png"):
        raise BuildError(f"{path} is neither .svg nor .png", repair="Name a file that ends in one of these.")
    if kind == ".png":
        save_png(found, whats, path)
        return
    try:
        path.write_text(svg.figure(found, whats))
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}", repair="Name another file.") from None


def save_png(found: Family, whats: Sequence[str], path: Path) -> None:
    """The same picture by matplotlib. Raises BuildError where that is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BuildError("a PNG needs matplotlib, which is not installed", repair="pip install matplotlib, or write an SVG.") from None
    figure = Figure(figsize=(INCHES[0] * len(whats), INCHES[1]), layout="constrained")
    for axes, what in zip(figure.subplots(1, len(whats), squeeze=False)[0], whats, strict=True):
        curves = [c[what] for c in found.curves]
        for label, curve in zip(found.labels, curves, strict=True):
            axes.plot(found.positions, curve, label=f"{found.by} = {label}" if found.by else None)
        axes.set(title=svg.title_of(what, found.lines[0].name), xlabel=found.lines[0].name, ylim=svg.limits(curves))
        axes.grid(alpha=0.3)
        if found.by:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=144)


def main(args: argparse.Namespace) -> int:
    """`losscomp plot`: 0, or an error."""
    definition = catalogue.pick([args.loss], args.defs or catalogue.builtin_definitions())[args.loss]
    library, _ = library_for(definition, Library() if args.defs else library_at(args.lib))
    found = wanted(definition, library, args.input, args.param, tuple(args.range) if args.range else None)
    fixed = ", ".join(f"{n} = {v}" for n, v in found.lines[0].fixed() if n != found.by)
    if args.output:
        save(found, args.what, args.output)
        print(f"{args.output}: {args.loss} along {found.lines[0].name}" + (f"; fixed: {fixed}" if fixed else ""))
        return 0
    for what in args.what:
        for line in braille.plot(found, what):
            print(line)
        print()
    print("\n".join(line for line in (braille.key(found), f"fixed: {fixed}" if fixed else "") if line))
    return 0

"""The command line: words only. What a command does is in the module of its name."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from . import __version__
from .errors import LosscompError

OK, FAILED, INTERRUPTED = 0, 1, 130
STAGES = ("definition", "check", "smooth", "differentiate", "stabilise", "lower", "schedule", "emit")
SHOWN = ("c", "numpy", "torch", "cuda")
PLOTTED = ("value", "gradient", "hessian")
OUT = "generated"
DEFS = "a folder or file of definitions (default: those of losscomp)"
MARKS = {True: "yes", False: "no "}


def parser() -> argparse.ArgumentParser:
    """Commands and arguments."""
    top = argparse.ArgumentParser(
        prog="losscomp", description="One formula of a loss in; derived, stable, checked code for every target out.")
    top.add_argument("--version", action="version", version=f"losscomp {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.add_argument("--traceback", action="store_true", help="show where in losscomp an error came from")
        made.set_defaults(action=action)
        return made

    build = command("build", run_build, "emit and compile a library from definitions")
    build.add_argument("definitions", nargs="?", type=Path, metavar="DEFS", help=DEFS)
    build.add_argument("--out", type=Path, default=Path(OUT), metavar="DIR", help=f"where the library goes (default: {OUT})")
    build.add_argument("--name", metavar="N", help="its name in Python and C (default: as it is, at first losslib)")
    build.add_argument("--targets", type=targets, metavar="T,...", help="for which targets, such as numpy,c (default: all)")
    build.add_argument("--only", nargs="+", default=[], metavar="LOSS", help="renew these losses, keep the others as they are")
    build.add_argument("--jobs", type=count, default=0, metavar="N", help="processes at a time (default: one for each core)")
    build.add_argument("--cuda", action="store_true", help="compile the CUDA kernels too; so does naming cuda in --targets")
    build.add_argument("--no-compile", action="store_true", help="emit the sources, compile nothing")
    build.add_argument("--check", action="store_true", help="change nothing; fail if a build would change something")
    build.add_argument("--watch", action="store_true", help="build again whenever a definition is saved, until interrupted")
    build.add_argument("-v", "--verbose", action="store_true", help="a line for each loss and file, also where nobody watches")

    listing = command("list", run_list, "the losses: name, kind, options, targets, what it is, its peer")
    listing.add_argument("definitions", nargs="?", type=Path, metavar="DEFS", help=DEFS)

    show = command("show", run_show, "every stage of one loss, from the definition to the emitted code")
    show.add_argument("loss", metavar="LOSS")
    show.add_argument("--stage", choices=STAGES, metavar="STAGE", help=f"one stage: {', '.join(STAGES)}")
    show.add_argument("--target", choices=SHOWN, default="c", help="whose loop nest and code (default: c)")
    show.add_argument("--kernel", metavar="K", help="one kernel, such as value_and_grad")
    show.add_argument("--variant", metavar="V", help="variants with V in their name, or all (default: the default arguments)")
    show.add_argument("--defs", type=Path, metavar="DEFS", help=DEFS)
    show.add_argument("--lib", type=Path, default=Path(OUT), metavar="DIR", help=f"the library with its certificates (default: {OUT})")

    checking = command("check", run_check, "is a definition sound? through the compiler, nothing is built")
    checking.add_argument("definitions", type=Path, metavar="DEF", help="a definition file, or a folder of them")
    checking.add_argument("--whole", action="store_true", help="derive every variant, however long that takes")

    suggest = command("suggest", run_suggest, "which rules fired on a loss and what they gained, and which others would help")
    suggest.add_argument("loss", metavar="LOSS")
    suggest.add_argument("--variant", metavar="V", help="variants with V in their name, or all (default: the default arguments)")
    suggest.add_argument("--defs", type=Path, metavar="DEFS", help=DEFS)

    docs = command("docs", run_docs, "HTML pages of the losses: formulas, derivatives, rewrites, accuracy, plots, examples")
    docs.add_argument("definitions", nargs="?", type=Path, metavar="DEFS", help=DEFS)
    docs.add_argument("--out", type=Path, default=Path("site"), metavar="DIR", help="where the pages go (default: site)")
    docs.add_argument("--only", nargs="+", default=[], metavar="LOSS", help="pages of these losses alone")
    docs.add_argument("--lib", type=Path, default=Path(OUT), metavar="DIR", help=f"the library with its certificates (default: {OUT})")
    docs.add_argument("--jobs", type=count, default=0, metavar="N", help="processes at a time (default: one for each core)")

    plot = command("plot", run_plot, "a loss and its derivatives as curves: an SVG file, or text in the terminal")
    plot.add_argument("loss", metavar="LOSS")
    plot.add_argument("--input", metavar="NAME", help="which input moves, or a number of it: input[0] (default: the first with a gradient)")
    plot.add_argument("--param", action="append", default=[], type=assignment, metavar="NAME=V1,V2",
                      help="values of a parameter or another input; of one of them several, each a curve")
    plot.add_argument("--range", nargs=2, type=float, metavar=("A", "B"), help="from where to where it moves")
    plot.add_argument("--what", type=results, default=("value", "gradient"), metavar="R,...",
                      help="value, gradient, hessian (default: value,gradient)")
    plot.add_argument("--output", type=Path, metavar="FILE", help="FILE.svg, or FILE.png with matplotlib (default: text)")
    plot.add_argument("--defs", type=Path, metavar="DEFS", help=DEFS)
    plot.add_argument("--lib", type=Path, default=Path(OUT), metavar="DIR", help=f"the library that computes it (default: {OUT})")

    new = command("new", run_new, "a definition file to start from")
    new.add_argument("name", metavar="NAME")
    new.add_argument("--folder", type=Path, default=Path(), help="where it goes (default: here)")

    verify = command("verify", run_verify, "how well the targets agree, with each other and with exact arithmetic")
    verify.add_argument("losses", nargs="*", metavar="LOSS", help="these losses (default: all)")
    verify.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    verify.add_argument("--lib", type=Path, default=Path(OUT), metavar="DIR", help=f"the library (default: {OUT})")
    verify.add_argument("--defs", type=Path, metavar="DEFS", help="what the library was built from (default: losscomp's own)")
    verify.add_argument("--quick", action="store_true", help="ordinary numbers only, and fewer of them")
    verify.add_argument("--certify", action="store_true", help="keep what is measured, with the worst inputs, in the library")
    verify.add_argument("--jobs", type=count, default=0, metavar="N", help="with --certify: processes at a time (default: the cores)")

    bench = command("bench", run_bench, "how long value and gradient take, beside PyTorch and beside a copy of their arrays")
    bench.add_argument("losses", nargs="*", metavar="LOSS", help="these losses (default: all)")
    bench.add_argument("--size", type=count, default=4_000_000, metavar="N", help="numbers in the largest input (default: 4000000)")
    bench.add_argument("--columns", type=count, default=1000, metavar="N", help="of them along each axis, such as classes (default: 1000)")
    bench.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="the type of numbers (default: float32)")
    bench.add_argument("--threads", type=count, default=1, metavar="N", help="ours and PyTorch's (default: 1)")
    bench.add_argument("--rounds", type=count, default=7, metavar="N", help="turns, of which the shortest counts (default: 7)")
    bench.add_argument("--compile", action="store_true", help="beside torch.compile too")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the times as JSON too")
    bench.add_argument("--lib", type=Path, default=Path(OUT), metavar="DIR", help=f"the library (default: {OUT})")
    bench.add_argument("--defs", type=Path, metavar="DEFS", help="what the library was built from (default: losscomp's own)")
    compare = command("compare", run_compare, "where and by how much a dialect differs from its base, in exact arithmetic")
    compare.add_argument("loss", metavar="DIALECT")
    compare.add_argument("other", nargs="?", metavar="LOSS", help="another loss (default: the one that it is a dialect of)")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    compare.add_argument("--defs", type=Path, metavar="DEFS", help=DEFS)

    command("doctor", run_doctor, "what this machine has, what that enables, how to get the rest")
    return top


def targets(text: str) -> tuple[str, ...]:
    """The value of --targets."""
    from .plan import TARGETS

    chosen = tuple(word.strip() for word in text.split(","))
    for word in chosen:
        if word not in TARGETS:
            raise argparse.ArgumentTypeError(f"there is no target {word!r}; there are {', '.join(TARGETS)}")
    return chosen


def count(text: str) -> int:
    """The value of --jobs."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count: a whole number, at least 1")
    return int(text)


def assignment(text: str) -> tuple[str, tuple[float, ...]]:
    """The value of --param."""
    name, _, values = text.partition("=")
    words = {"true": 1.0, "false": 0.0}
    try:
        return name.strip(), tuple(words[v.lower()] if v.lower() in words else float(v) for v in values.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no name with numbers, such as delta=0.5,1") from None


def results(text: str) -> tuple[str, ...]:
    """The value of --what."""
    chosen = tuple(word.strip() for word in text.split(","))
    for word in chosen:
        if word not in PLOTTED:
            raise argparse.ArgumentTypeError(f"there is no result {word!r}; there are {', '.join(PLOTTED)}")
    return tuple(dict.fromkeys(chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 misused (from argparse), 130 interrupted."""
    args = parser().parse_args(argv)
    try:
        code: int = args.action(args)
        sys.stdout.flush()
        return code
    except LosscompError as error:
        if args.traceback:
            raise
        say(complaint(error))
    except KeyboardInterrupt:
        say("losscomp: interrupted")
        return INTERRUPTED
    except BrokenPipeError:                                  # `losscomp show ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if args.traceback:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        say(f"losscomp: a defect: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})\n"
            f"  --traceback shows all.")
    return FAILED


def complaint(error: LosscompError) -> str:
    """An error in words."""
    return str(error) if error.stage == "losscomp" and not error.where else f"losscomp: {error}"


def say(text: str) -> None:
    """To whoever watches."""
    print(text, file=sys.stderr, flush=True)


def run_build(args: argparse.Namespace) -> int:
    """losscomp build"""
    return run_watch(args) if args.watch and not args.check else run_build_once(args)


def run_watch(args: argparse.Namespace) -> int:
    """losscomp build --watch"""
    from .render import data_folder
    from .watch import watch

    def again() -> None:
        try:
            run_build_once(args)
        except LosscompError as error:
            say(complaint(error))
        sys.stdout.flush()

    definitions = args.definitions or data_folder("definitions")
    say(f"losscomp: watching {definitions}; Ctrl-C ends")
    try:
        watch(definitions, again)
    except KeyboardInterrupt:
        say("losscomp: no longer watching")
    return OK


def run_build_once(args: argparse.Namespace) -> int:
    """One build."""
    from .build import Talk, build, check
    from .certificates import outdated
    from .doctor import torch_cuda
    from .plan import TARGETS, Options

    watched = args.verbose or sys.stderr.isatty()
    talk = Talk(lambda text: say(f"  {text}") if watched else None, lambda text: say(f"losscomp: {text}"))
    cuda = args.cuda or "cuda" in (args.targets or ())
    options = Options(args.definitions, args.out, args.name, args.targets or TARGETS, tuple(args.only), args.jobs,
                      not args.no_compile, cuda)
    if args.check:
        found = check(options, talk)
        for difference in found:
            print(f"{difference.kind:9} {args.out / difference.path}")
        print(f"{args.out}: {plural(len(found), 'file')} to renew; run losscomp build" if found
              else f"{args.out} is up to date")
        for line in outdated(args.out):
            say(f"losscomp: {line}: losscomp verify --certify")
        return FAILED if found else OK
    report = build(options, talk)
    if report.restored:
        say(f"losscomp: renewed what had been edited by hand: {', '.join(report.restored)}")
    for target, why in report.lacking.items():
        say(f"losscomp: {report.name}.{target} is not compiled, its sources are emitted: {why}")
    if "cuda" in set(report.waiting) - set(report.lacking) and torch_cuda():
        say(f"losscomp: this PyTorch has CUDA, and the kernels for it are not compiled: on GPUs {report.name}.torch does without until "
            f"`losscomp build --cuda` (minutes; needs nvcc)")
    did = {"derived": len(report.emitted), "compiled": len(report.compiled), "written": len(report.written),
           "removed": len(report.removed)}
    words = "up to date" if report.idle else ", ".join(f"{number} {word}" for word, number in did.items())
    print(f"{report.name} in {args.out}: {plural(report.losses, 'loss')}, {words} ({report.seconds:.1f} s)")
    return OK


def plural(number: int, word: str) -> str:
    """3 files, 1 file."""
    return f"{number} {word if number == 1 else word + ('es' if word.endswith('s') else 's')}"


def run_list(args: argparse.Namespace) -> int:
    """losscomp list"""
    from .render import data_folder
    from .show import rows

    found = rows(args.definitions or data_folder("definitions"))
    columns = ("name", "kind", "options", "targets", "summary", "peer")
    wide = {column: max(len(getattr(row, column)) for row in found) for column in columns}
    fixed = sum(wide.values()) - wide["summary"] + 2 * (len(columns) - 1)
    room = max(20, shutil.get_terminal_size().columns - fixed) if sys.stdout.isatty() else 1000
    wide["summary"] = min(wide["summary"], room)
    for row in found:
        short = row.summary if len(row.summary) <= room else row.summary[:room - 3] + "..."
        texts = {column: short if column == "summary" else getattr(row, column) for column in columns}
        print("  ".join(f"{text:{wide[column]}}" for column, text in texts.items()).rstrip())
    return OK


def run_show(args: argparse.Namespace) -> int:
    """losscomp show"""
    from .certificates import lines, read
    from .render import data_folder
    from .show import find, show

    definition = find(args.loss, args.defs or data_folder("definitions"))
    for line in show(definition, args.stage, args.target, args.kernel, args.variant):
        print(line)
    certificate = read(args.lib, args.loss) if args.stage in (None, "stabilise") else None
    if certificate is not None:
        print("\n== certificate ".ljust(121, "="))
        for line in lines(certificate):
            print(line)
    return OK


def run_check(args: argparse.Namespace) -> int:
    """losscomp check"""
    from time import perf_counter

    from .checking import check_all

    start, sound, wrong = perf_counter(), 0, 0
    for found in check_all(args.definitions, args.whole):
        if isinstance(found, LosscompError):
            wrong += 1
            if args.traceback:
                raise found
            say(complaint(found))
            continue
        sound += 1
        some = "" if found.derived == found.variants else f", of which {found.derived} derived (--whole derives all)"
        print(f"{found.name}: {plural(found.variants, 'variant')}{some}, {plural(found.kernels, 'kernel')}")
        print(*(f"  {line}" for line in found.lines), sep="\n")
    print(f"{args.definitions}: {plural(sound, 'loss')} sound{f', {wrong} not' if wrong else ''}, nothing built "
          f"({perf_counter() - start:.1f} s)")
    return FAILED if wrong else OK


def run_suggest(args: argparse.Namespace) -> int:
    """losscomp suggest"""
    from .catalogue import pick
    from .render import data_folder
    from .suggest import suggest

    for line in suggest(pick([args.loss], args.defs or data_folder("definitions"))[args.loss], args.variant):
        print(line)
    return OK


def run_docs(args: argparse.Namespace) -> int:
    """losscomp docs"""
    code: int = import_module(".docs", __package__).main(args)
    return code


def run_plot(args: argparse.Namespace) -> int:
    """losscomp plot"""
    code: int = import_module(".plot", __package__).main(args)
    return code


def run_new(args: argparse.Namespace) -> int:
    """losscomp new"""
    from .scaffold import new

    path = new(args.name, args.folder)
    print(path)
    print(f"  check it: losscomp check {path}")
    print(f"  see it:   losscomp show {args.name} --defs {path}")
    print(f"  build it: losscomp build {path} --out {args.name}_lib --name {args.name}_lib")
    return OK


def run_verify(args: argparse.Namespace) -> int:
    """losscomp verify"""
    code: int = import_module(".certify" if args.certify else ".verify", __package__).main(args)
    return code


def run_bench(args: argparse.Namespace) -> int:
    """losscomp bench"""
    code: int = import_module(".bench", __package__).main(args)
    return code


def run_compare(args: argparse.Namespace) -> int:
    """losscomp compare"""
    code: int = import_module(".compare", __package__).main(args)
    return code


def run_doctor(args: argparse.Namespace) -> int:
    """losscomp doctor"""
    from .doctor import examine

    findings = examine()
    wide = max(len(f.name) for f in findings)
    for f in findings:
        print(f"{MARKS[bool(f.found)]}  {f.name:{wide}}  {f.found or f'missing; enables {f.enables}. Get it: {f.get}'}")
    return FAILED if any(f.needed and not f.found for f in findings) else OK
